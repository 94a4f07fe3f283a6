"""What a fitted solver is compared with at as many evaluations: published schemes, each as the rule that it is.

All of them are linear in the noise and the velocities, so that the same run computes them, with latents in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from kontext_fast.engine.solver import Solver, adams_bashforth, reused_steps
from kontext_fast.engine.step_reuse import Schedule
from kontext_fast.optimizations.presets import find_preset
from kontext_fast.optimizations.techniques.step_reuse import StepReuse

Rule = Callable[[Sequence[float]], Solver]
"""The rule of a call, given the noise levels of its steps and 0."""

OPTIMAL_STEPS = (0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.001)
"""Times that Optimal Steps (Pei et al., arXiv 2503.21774) found for FLUX.1, as ComfyUI ships them."""


def schemes(evaluations: int, levels_of: Callable[[int], Sequence[float]]) -> Mapping[str, Rule]:
    """Schemes with that many evaluations, by name; `levels_of(n)` [n + 1] are the noise levels of n steps and 0."""
    levels = levels_of(evaluations)
    named: dict[str, Rule] = {
        "plain steps": lambda _: adams_bashforth(levels, 1),
        "step_reuse": partial(_reused, evaluations=evaluations),
        "Adams-Bashforth": lambda _: adams_bashforth(levels, 2),
        "UniPC": lambda _: unipc(levels),
        "DPM++": lambda _: dpm_plus_plus(levels),
    }
    if evaluations == 13:
        named["every third step (Replicate)"] = every_third
    if evaluations == len(OPTIMAL_STEPS) - 1:
        named["Optimal Steps"] = lambda _: adams_bashforth((*OPTIMAL_STEPS[:-1], 0.0), 1)
    return named


PRESET_NAMES = ("fast", "turbo")
"""Presets whose computed steps stand beside what is fitted, in the precision of the fit."""


def preset_steps(name: str, steps: int) -> Schedule:
    """Which of `steps` the preset of that name computes, and what it does at the others."""
    reuse = next(part for part in find_preset(name).optimizations if isinstance(part, StepReuse))
    return Schedule(reuse.computed_steps(steps), reuse.order, reuse.corrector)


def steps_of_preset(name: str) -> Rule:
    """The computed steps of a preset as a rule."""
    return lambda sigmas: reused_steps(sigmas, preset_steps(name, len(sigmas) - 1))


def _reused(sigmas: Sequence[float], evaluations: int) -> Solver:
    """`step_reuse` with computed steps spread evenly, and the last two, as the presets fast and turbo have them."""
    last = len(sigmas) - 2
    spread = {round(float(step)) for step in np.linspace(0, last - 1, evaluations - 1)}
    return reused_steps(sigmas, Schedule(frozenset({*spread, last}), order=1, corrects=True))


def every_third(sigmas: Sequence[float]) -> Solver:
    """The first three steps, the last three and every third between them, the others extrapolated along a line.

    The schedule of Replicate's cog-flux-kontext: 13 of 28 steps.
    """
    steps = len(sigmas) - 1
    computed = {*range(3), *range(2, steps, 3), *range(steps - 3, steps)}
    return reused_steps(sigmas, Schedule(frozenset(computed), order=1, corrects=False))


def unipc(levels: Sequence[float]) -> Solver:
    """UniPC of second order (Zhao et al., arXiv 2302.04867) over `levels` [N + 1], as diffusers computes it."""
    from diffusers import UniPCMultistepScheduler

    return _rule_of(UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), levels)


def dpm_plus_plus(levels: Sequence[float]) -> Solver:
    """DPM-Solver++ 2M (Lu et al., arXiv 2211.01095) over `levels` [N + 1], as diffusers computes it."""
    from diffusers import DPMSolverMultistepScheduler

    return _rule_of(DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), levels)


def _rule_of(scheduler: Any, levels: Sequence[float]) -> Solver:
    """The rule of a diffusers scheduler: it is linear, so on unit vectors it shows its coefficients."""
    evaluations = len(levels) - 1
    scheduler.set_timesteps(evaluations)
    scheduler.sigmas = torch.tensor(levels, dtype=torch.float64)
    # Distinct whole numbers, by which a scheduler finds its place.
    scheduler.timesteps = torch.tensor([round(level * 1000) for level in levels[:-1]])
    scheduler.set_begin_index(0)
    # One sample whose channels are the vectors.
    units = torch.eye(evaluations + 1, dtype=torch.float64)[:, None]
    latents, rows = units[0], []
    for step in range(evaluations):
        latents = scheduler.step(units[step + 1], scheduler.timesteps[step], latents, return_dict=False)[0]
        rows.append(tuple(latents[0, : step + 2].tolist()))
    return Solver(noise_levels=tuple(levels[:-1]), coefficients=tuple(rows))
