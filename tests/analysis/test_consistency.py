"""Times of several step counts that one time per step cannot explain are pointed out."""

from __future__ import annotations

import pytest

from kontext_fast.analysis.benchmark import analyze_benchmark
from kontext_fast.analysis.consistency import contradictions
from tests.records.builder import record, result, sample, workload


def found(times: dict[int, float], *, computed: int | None = None) -> tuple[str, ...]:
    """What is said of a preset with one process per step count; a call takes the seconds and computes all steps or
    `computed`."""
    runs = []
    for steps, wall in times.items():
        samples = [sample(item, wall, steps=steps, skipped=steps - (computed or steps)) for item in "ab"]
        runs.append(record("fast", 0, samples, of=workload(steps=steps), run_id=f"fast {steps}"))
    return contradictions(analyze_benchmark(result(runs)))


@pytest.mark.parametrize(
    "times",
    [
        {10: 1.4, 20: 2.72, 28: 3.8, 50: 6.8},
        {10: 1.4, 28: 3.8},
        {10: 1.4},
        {10: 1.9, 20: 2.9, 28: 3.7, 50: 5.9},  # a constant part of 0.9 s
    ],
)
def test_times_that_grow_with_steps_are_no_contradiction(times: dict[int, float]) -> None:
    assert found(times) == ()


def test_fewer_steps_that_take_longer_are_named() -> None:
    (words,) = found({10: 0.569, 20: 0.749, 28: 0.583, 50: 1.41})
    assert words.startswith("fast at edit, 128x128, batch 1: 20 steps take 0.749 s and 28 steps 0.583 s")
    assert words.endswith("measure these step counts again.")


def test_steps_that_cost_almost_nothing_are_named() -> None:
    """Eight steps more in a seventh of the time that they take elsewhere on the line."""
    (words,) = found({10: 1.40, 20: 2.72, 28: 2.91, 50: 5.72})
    assert "20 steps take 2.72 s and 28 steps 2.91 s" in words


def test_times_are_compared_by_computed_steps() -> None:
    """28 steps of which 24 are skipped need take no longer than 10 of which 6 are."""
    assert found({10: 0.5, 28: 0.5}, computed=4) == ()
    assert len(found({10: 0.5, 28: 0.5})) == 1
