"""Published schemes as rules: they are what diffusers computes, and have as many evaluations as they claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from kontext_fast.engine.solver import SolverRun
from kontext_fast.tuning.schemes import every_third, schemes


def levels_of(steps: int) -> list[float]:
    times = np.linspace(1, 1 / steps, steps)
    return [*(2 * times / (1 + times)).tolist(), 0.0]


@pytest.mark.parametrize("evaluations", [6, 10])
def test_every_scheme_has_its_evaluations_and_is_consistent(evaluations: int) -> None:
    named = schemes(evaluations, levels_of)
    assert {"plain steps", "step_reuse", "UniPC", "DPM++"} < set(named)
    assert ("Optimal Steps" in named) == (evaluations == 10)
    for name, rule in named.items():
        solver = rule(levels_of(28))
        assert solver.evaluations == evaluations, name
        noise, *velocities = solver.coefficients[-1]
        # A constant velocity is followed exactly, from the first level to 0.
        assert noise == pytest.approx(1, abs=1e-6), name
        assert sum(velocities) == pytest.approx(-solver.noise_levels[0], abs=1e-5), name


@pytest.mark.parametrize("name", ["UniPC", "DPM++"])
def test_a_scheduler_as_a_rule_gives_what_it_gives(name: str) -> None:
    """On a velocity that depends on the state, in diffusers' own loop."""
    classes = {"UniPC": UniPCMultistepScheduler, "DPM++": DPMSolverMultistepScheduler}
    scheduler = classes[name](prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(8)
    levels = scheduler.sigmas.tolist()
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(1, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, run = noise, SolverRun(schemes(8, lambda _: levels)[name](levels))
    reached = noise
    for time, level in zip(scheduler.timesteps, levels, strict=False):
        expected = scheduler.step(torch.tanh(expected @ matrix) * (1 + level), time, expected, return_dict=False)[0]
        reached = run.advance(reached, torch.tanh(reached.double() @ matrix) * (1 + level))
    np.testing.assert_allclose(reached.numpy(), expected.numpy(), atol=2e-5)


def test_the_recipe_of_replicate_computes_thirteen_of_28() -> None:
    assert every_third(levels_of(28)).evaluations == 13
