from __future__ import annotations

from contextlib import ExitStack
from itertools import count
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pytest

from kontext_fast.bench.timing import StageClock
from kontext_fast.engine.solver import adams_bashforth
from kontext_fast.optimizations.techniques.solver import FittedSolver
from tests.pipelines import render, small_pipeline


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small_pipeline()


def attributes(pipe: Any) -> list[dict[str, int]]:
    """What is set on each object that a clock touches, by identity."""
    return [
        {name: id(value) for name, value in vars(owner).items()}
        for owner in (pipe.vae, pipe.scheduler, pipe.transformer, pipe.text_encoder, pipe.text_encoder_2)
    ] + [dict.fromkeys(vars(pipe), 0)]


def test_stages_and_steps_sum_to_at_most_the_call(pipe: Any) -> None:
    with StageClock(pipe) as clock:
        start = perf_counter()
        render(pipe, steps=3)
        wall_s = perf_counter() - start
    times = clock.times()
    assert set(times.stages_s) == {"text_encode", "vae_encode", "denoise", "vae_decode"}
    assert all(value > 0 for value in times.stages_s.values())
    assert len(times.steps_s) == 3
    assert times.stages_s["denoise"] == pytest.approx(sum(times.steps_s))
    assert 0.5 * wall_s < sum(times.stages_s.values()) <= wall_s


def test_steps_of_a_solver_are_timed_in_place_of_the_pipeline_s(pipe: Any) -> None:
    """A solver brings a scheduler of its own for the call, which the clock has not wrapped."""
    with ExitStack() as undo:
        FittedSolver(fitted=adams_bashforth([1.0, 0.8, 0.5, 0.2, 0.0], 2)).apply(pipe, undo)
        with StageClock(pipe) as clock:
            render(pipe, steps=28)
    times = clock.times()
    assert len(times.steps_s) == 4
    assert times.stages_s["denoise"] == pytest.approx(sum(times.steps_s))


def test_time_counts_in_the_stage_that_spends_it(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, step = pipe.vae.decode, pipe.transformer.forward

    def slow_decode(*args: Any, **kwargs: Any) -> Any:
        sleep(0.2)
        return decode(*args, **kwargs)

    def slow_step(*args: Any, **kwargs: Any) -> Any:
        sleep(0.1)
        return step(*args, **kwargs)

    monkeypatch.setattr(pipe.vae, "decode", slow_decode)
    monkeypatch.setattr(pipe.transformer, "forward", slow_step)
    with StageClock(pipe) as clock:
        render(pipe, steps=2)
    times = clock.times()
    assert times.stages_s["vae_decode"] > 0.2
    assert all(seconds > 0.1 for seconds in times.steps_s)
    assert times.stages_s["vae_encode"] < 0.2
    # A method that was set on the instance before is there again, and is still the one that runs.
    assert pipe.vae.decode is slow_decode


def test_t5_counts_once_where_it_begins_earlier(pipe: Any) -> None:
    with StageClock(pipe) as clock:
        clock._mark = map(float, count()).__next__
        pipe._get_t5_prompt_embeds("red", max_sequence_length=48)
        pipe.encode_prompt("red", max_sequence_length=48)
    assert clock.times().stages_s == {"text_encode": 2.0}


def test_true_cfg_keeps_the_number_of_steps(pipe: Any) -> None:
    with StageClock(pipe) as clock:
        render(pipe, steps=2, negative="blurry")
    assert len(clock.times().steps_s) == 2


def test_clock_changes_no_output_and_leaves_no_trace(pipe: Any) -> None:
    plain = render(pipe, steps=2)
    before = attributes(pipe)
    with StageClock(pipe):
        assert attributes(pipe) != before
        timed = render(pipe, steps=2)
    assert np.array_equal(plain, timed)
    # The scheduler's own state moves with every edit, clock or not; only its names are compared.
    after = attributes(pipe)
    assert [set(names) for names in after] == [set(names) for names in before]
    for owner in (pipe, pipe.vae, pipe.scheduler):
        assert not {"encode_prompt", "encode", "decode", "step", "set_begin_index"} & set(vars(owner))
    assert type(pipe.scheduler).step.__qualname__ == "FlowMatchEulerDiscreteScheduler.step"


def test_failed_edit_leaves_no_trace_of_the_clock(pipe: Any) -> None:
    def stop(step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), StageClock(pipe) as clock:
        render(pipe, steps=3, on_step=stop)
    assert not {"step", "set_begin_index"} & set(vars(pipe.scheduler))
    assert len(clock.times().steps_s) == 1


def test_clocks_of_two_pipelines_are_independent(pipe: Any) -> None:
    other = small_pipeline()
    with StageClock(pipe) as clock, StageClock(other) as other_clock:
        render(pipe, steps=2)
        render(other, steps=3)
    assert (len(clock.times().steps_s), len(other_clock.times().steps_s)) == (2, 3)
