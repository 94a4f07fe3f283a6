"""What a benchmark finds out about itself, and the claims that its A/A control allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kontext_fast.analysis.benchmark import analyze_benchmark
from kontext_fast.records.schema import CONTROL, Cell, GpuReadings, Record, Sample
from kontext_fast.report.text.phrases import checks, not_measured, speed_finding
from tests.records.builder import record, result, sample, timed, workload

CENTRE = Cell(mode="edit", size="native", steps=4, batch=1)
LATER = Cell(mode="edit", size="native", steps=28, batch=1)


def bench(*, noise: float, cache: float, rounds: int = 6) -> list[Record]:
    rng = np.random.default_rng(0)
    return [
        timed(preset, round_, [wall * float(np.exp(rng.normal(0, noise)))] * 2)
        for round_ in range(rounds)
        for preset, wall in (("baseline", 1.0), (CONTROL, 1.0), ("cache", cache))
    ]


def unmeasured(preset: str) -> Record:
    why = "The budget ended."
    return record(preset, 9, status="not measured", reason=why, cells=(LATER,), checkpoint=None, environment={})


def said(records: list[Record]) -> str:
    (group,) = analyze_benchmark(result(records))
    return " ".join(checks(group))


def finding(records: list[Record]) -> str:
    group = analyze_benchmark(result(records))[0]
    return speed_finding(group.rows, group.smallest_claim)


def test_preset_is_faster_only_beyond_the_control() -> None:
    assert finding(bench(noise=0.003, cache=0.9)).startswith("cache is 1.110x as fast as baseline")
    # Apart from 1 by its interval, but not by more than baseline may be from itself.
    noisy = list(bench(noise=0.003, cache=0.97))
    for index, one in enumerate(noisy):
        if one.preset == CONTROL:
            noisy[index] = timed(CONTROL, one.round, [1.0 + 0.05 * (one.round % 2)] * 2)
    assert "cache is" not in finding(noisy)
    assert "that the A/A control resolves" in finding(noisy)


def test_control_is_never_the_fastest_preset() -> None:
    records = list(bench(noise=0.003, cache=1.2))
    fast = [timed(CONTROL, one.round, [0.5, 0.5]) if one.preset == CONTROL else one for one in records]
    assert CONTROL not in finding(fast)


def test_missing_control_is_reported() -> None:
    assert "A/A control: none" in said([timed("baseline", r, [1.0, 1.0]) for r in range(2)])


def test_control_that_excludes_one_is_reported() -> None:
    drifting = [timed(p, r, [w + 0.001 * r] * 2) for r in range(5) for p, w in (("baseline", 1.0), (CONTROL, 1.2))]
    assert "excludes 1, which it should not" in said(drifting)


def test_checks_report_drift_outliers_and_percentiles() -> None:
    text = said([timed("baseline", r, [1.0 + 0.01 * r] * 2) for r in range(8)])
    assert "baseline drifted by +6.8 % from its first process to its last" in text
    assert "p90" not in text
    text = said([timed("baseline", r, [2.0 if r == 4 else 1.0 + 0.001 * (-1) ** r] * 20) for r in range(8)])
    assert "baseline has outliers (+100.0 % from the median of its processes), which are not removed" in text
    assert "p90" in text
    assert "p95 " in text
    assert "p99" not in text


def gpu(**changes: Any) -> GpuReadings:
    usual: dict[str, Any] = {
        "at_s": (0.0,),
        "power_w": (300.0,),
        "clock_sm_mhz": (1500,),
        "clock_memory_mhz": (2000,),
        "temperature_c": (60,),
        "throttle_reasons": (),
        "energy_j": 10.0,
        "foreign_processes": 0,
    }
    return GpuReadings(**{**usual, **changes})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpu": gpu(throttle_reasons=("power cap",))}, "The GPU throttled in 1 of 2 calls (power cap)"),
        ({"gpu": gpu(foreign_processes=2)}, "Other processes used the GPU in 1 of 2 calls"),
        ({"graphs_compiled": 3}, "baseline compiled graphs in 1 measured call"),
    ],
)
def test_checks_report_disturbed_calls(change: dict[str, Any], words: str) -> None:
    quiet = {"gpu": gpu(), "graphs_compiled": 0}

    def taken(item: str, update: dict[str, Any], *, warmup: bool = False) -> Sample:
        return sample(item, 1.0, warmup=warmup).model_copy(update={**quiet, **update})

    assert words in said([record("baseline", 0, [taken("a", change), taken("b", {})])])
    assert words not in said([record("baseline", 0, [taken("a", {}), taken("b", {})])])
    # Warm-ups are where compiling belongs.
    assert words not in said([record("baseline", 0, [taken("a", change, warmup=True), taken("a", {}), taken("b", {})])])


def test_unmeasured_cells_are_named() -> None:
    (rest,) = analyze_benchmark(result([unmeasured("cache")]))
    missing = not_measured(rest, None)
    assert "cache: The budget ended. (edit native, 28 steps)" in missing


def test_sweeps_use_the_control_of_the_centre() -> None:
    def at(cell: Cell, records: list[Record]) -> list[Record]:
        return [
            one.model_copy(
                update={
                    "run_id": f"{one.run_id} {cell.steps}",
                    "round": one.round + cell.steps,
                    "cells": (cell,),
                    "measurements": tuple(
                        m.model_copy(update={"cell": cell, "workload": workload(steps=cell.steps)})
                        for m in one.measurements
                    ),
                }
            )
            for one in records
        ]

    centre = at(CENTRE, bench(noise=0.01, cache=0.5))
    sweep = at(LATER, [one for one in bench(noise=0.01, cache=0.5) if one.preset != CONTROL])
    found = analyze_benchmark(result([*centre, *sweep]))
    assert [group.workload and group.workload.steps for group in found] == [4, 28]
    limits = [group.smallest_claim for group in found]
    assert limits[0] is not None
    assert limits == [limits[0], limits[0]]
    assert "from the centre of the suite" in checks(found[1])[0]


def on_cards(*of_round: str) -> list[Record]:
    """A benchmark on cards of one name, of which `of_round` has each block's; each card has a factor of its own."""
    factors = {card: 2.0 + 0.1 * number for number, card in enumerate(dict.fromkeys(of_round))}
    return [
        timed(preset, round_, [wall] * 2, environment={"gpu": {"name": "Imaginary 9000", "uuid_sha256": card}})
        for round_, card in enumerate(of_round)
        for preset, wall in (("baseline", 1.0 + 0.001 * round_), (CONTROL, 1.0), ("cache", 1 / factors[card]))
    ]


@pytest.mark.parametrize(
    ("cards", "n", "words", "rounds"),
    [
        ("aaaa", 4, "All runs were on one card, so that no interval covers another card of its name.", "4 rounds"),
        ("aabb", 4, "Runs on 2 cards, too few for intervals that cover another one", "4 rounds of 2 cards"),
        ("aabbcc", 3, "Of 3 cards: the intervals of baseline, baseline-again, cache are over the means", "3 cards"),
    ],
)
def test_intervals_say_which_cards_they_cover(cards: str, n: int, words: str, rounds: str) -> None:
    records = on_cards(*cards)
    (group,) = analyze_benchmark(result(records))
    factor = group.row("cache").factor  # type: ignore[union-attr]
    assert factor is not None
    assert (factor.n, factor.cards) == (n, len(set(cards)))
    assert words in said(records)
    if len(set(cards)) < 3:
        assert f"{rounds})" in finding(records)
    else:
        # Three cards that differ: over their six blocks the interval would be a third as wide.
        assert factor.interval is not None
        assert factor.interval[1] - factor.interval[0] == pytest.approx(0.5, abs=0.1)


def test_cards_are_no_matter_without_a_gpu() -> None:
    assert "card" not in said(bench(noise=0.003, cache=0.9))
