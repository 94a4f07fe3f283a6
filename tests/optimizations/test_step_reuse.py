"""Which steps a schedule of `step_reuse` computes, and what it refuses; what it does to images is in test_engine."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from kontext_fast.engine.step_reuse import Schedule
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.techniques.engine import Engine
from kontext_fast.optimizations.techniques.step_reuse import StepReuse
from tests.pipelines import render, small_pipeline

FALLING = [1.0, 0.8, 0.5, 0.2, 0.0]
PLAIN = FlowMatchEulerDiscreteScheduler()
EULER_ONLY = (
    "step_reuse corrects its guesses for Euler's method only, not for this {}; use a plain "
    "FlowMatchEulerDiscreteScheduler, or StepReuse(corrector=False)."
)


def test_label_counts_and_lists_the_computed_steps() -> None:
    for architecture_only in (False, True):
        assert StepReuse(computed=9).label(architecture_only=architecture_only) == (
            "step_reuse on a fixed schedule: 5 of 28 steps computed at 28 (0, 9, 18, 26, 27)"
        )


def test_given_steps_are_the_whole_schedule() -> None:
    given = StepReuse(computed=(0, 2, 4))
    assert given.computed_steps(4) == {0, 2}
    assert given.parameters() == {"order": 1, "corrector": True, "computed": [0, 2, 4]}
    assert StepReuse().parameters() == {"order": 1, "corrector": True, "warmup_share": 0.0, "computed": 3}
    assert StepReuse(computed=9, warmup_share=0.5).computed_steps(8) == {0, 1, 2, 3, 6, 7}


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"computed": (1, 2)}, "a schedule must compute step 0, there is nothing to extrapolate from before it"),
        (
            {"computed": (0, 1), "warmup_share": 0.0},
            "given steps are the whole schedule; leave out warmup_share",
        ),
    ],
)
def test_schedules_that_cannot_run_are_refused(parameters: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        StepReuse(**parameters)
    assert str(caught.value) == f"Bad parameters for step_reuse: {complaint}."


@pytest.mark.parametrize(
    ("scheduler", "sigmas", "complaint"),
    [
        (UniPCMultistepScheduler(), FALLING, EULER_ONLY.format("UniPCMultistepScheduler")),
        *(
            (FlowMatchEulerDiscreteScheduler(**{name: True}), FALLING, EULER_ONLY.format(type(PLAIN).__name__))
            for name in ("stochastic_sampling", "invert_sigmas")
        ),
        (
            PLAIN,
            [1.0, 0.5, 0.5, 0.0],
            "step_reuse corrects its guesses only where the noise falls at every step; keep sigmas apart.",
        ),
    ],
)
def test_guesses_are_corrected_for_falling_euler_steps_alone(scheduler: Any, sigmas: Any, complaint: str) -> None:
    assert StepReuse(corrector=False)._schedule(scheduler, FALLING) == Schedule(frozenset({0, 2, 3}), 1, False)
    assert StepReuse(order=0)._schedule(PLAIN, FALLING) == Schedule(frozenset({0, 2, 3}), 0, True)
    with pytest.raises(InvalidInput) as caught:
        StepReuse()._schedule(scheduler, sigmas)
    assert str(caught.value) == complaint


def test_computed_steps_of_the_last_call_are_counted() -> None:
    pipe = small_pipeline()
    with accelerate(pipe, [Engine(), StepReuse(computed=(0, 2))], quiet=True) as acceleration:
        assert acceleration.facts["step_reuse"] == {"computed_steps": []}
        render(pipe, steps=4)
        assert acceleration.facts["step_reuse"] == {"computed_steps": [[2]]}
