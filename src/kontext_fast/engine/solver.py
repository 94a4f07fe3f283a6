"""A linear multistep rule: noise levels, and how the latents at each are made of the noise and the velocities so far.

    x[n + 1] = a[n] x[0] + sum of b[n, j] v[j] over j <= n

x[0] is the starting noise and v[j] the model's velocity at x[j] and noise level j; x[N] is the result. Euler's method,
Adams-Bashforth, multistep predictor-correctors such as UniPC (Zhao et al., arXiv 2302.04867) and skipped steps whose
velocity is extrapolated are all of this form. Bespoke non-stationary solvers (Shaul et al., arXiv 2403.01329) are the
published relative that fits such numbers to a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kontext_fast.engine.step_reuse import Schedule, Velocities

if TYPE_CHECKING:
    from torch import Tensor


class Solver(BaseModel):
    """The numbers of a rule of N evaluations. Pure, frozen, validated data."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    noise_levels: Annotated[tuple[float, ...], Field(min_length=1)]
    """[N] sigma of each evaluation, as the model is told it: after the shift, falling, in 0 to 1."""
    coefficients: tuple[tuple[float, ...], ...]
    """[N] rows; row n has a[n], then b[n, 0] to b[n, n]. The last row leads to the result, at sigma 0."""

    @model_validator(mode="after")
    def _is_a_rule(self) -> Solver:
        levels = self.noise_levels
        if levels[0] > 1 or levels[-1] <= 0 or any(after >= before for before, after in pairwise(levels)):
            raise ValueError("noise levels fall, from 1 at most to more than 0")
        if len(self.coefficients) != len(levels):
            rows = len(self.coefficients)
            raise ValueError(f"{len(levels)} noise levels need as many rows of coefficients, not {rows}")
        for index, row in enumerate(self.coefficients):
            if len(row) != index + 2:
                raise ValueError(f"row {index + 1} of the coefficients has {len(row)} numbers and needs {index + 2}")
        return self

    @property
    def evaluations(self) -> int:
        """N."""
        return len(self.noise_levels)

    @property
    def content_hash(self) -> str:
        """Sha256 of all numbers."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


class SolverRun:
    """The state of one run of a rule, in float32, whatever the model computes in."""

    def __init__(self, solver: Solver) -> None:
        self.solver = solver
        self._noise: Tensor | None = None
        self._velocities: list[Tensor] = []

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """Sigma of each evaluation."""
        return self.solver.noise_levels

    def advance(self, latents: Tensor, velocity: Tensor) -> Tensor:
        """The latents after this evaluation, in float32.

        `latents` is what the model was given; it is read at the first evaluation only, as the noise. `velocity` is what
        it said of them, of the same shape. Raises IndexError after the last evaluation.
        """
        if self._noise is None:
            self._noise = latents.float()
        row = self.solver.coefficients[len(self._velocities)]
        self._velocities.append(velocity.float())
        return combined(row, [self._noise, *self._velocities])


def combined(row: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """The sum of `row[k] * tensors[k]`, all of one shape, added up in this order."""
    total = tensors[0] * row[0]
    for factor, tensor in zip(row[1:], tensors[1:], strict=True):
        total = total.add_(tensor, alpha=factor)
    return total


def adams_bashforth(sigmas: Sequence[float], order: int) -> Solver:
    """Each step follows the polynomial through the last `order` velocities, over sigma; order 1 is Euler's method.

    `sigmas` [N + 1] are the noise levels and the end. The first steps have as high an order as there are velocities.
    """
    rows: list[tuple[float, ...]] = []
    weights = [0.0] * (len(sigmas) - 1)
    for index, (start, end) in enumerate(pairwise(sigmas)):
        first = max(0, index - order + 1)
        for position, weight in enumerate(polynomial_weights(sigmas[first : index + 1], start, end), start=first):
            weights[position] += weight
        rows.append((1.0, *weights[: index + 1]))
    return Solver(noise_levels=tuple(sigmas[:-1]), coefficients=tuple(rows))


def polynomial_weights(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """The integral from `start` to `end` of the polynomial through values at `nodes`, as weights of these values."""
    from numpy.polynomial import Polynomial

    weights = []
    for node in nodes:
        basis = Polynomial([1.0])
        for other in nodes:
            if other != node:
                basis *= Polynomial([-other, 1.0]) / (node - other)
        integral = basis.integ()
        weights.append(float(integral(end) - integral(start)))
    return weights


def reused_steps(sigmas: Sequence[float], schedule: Schedule) -> Solver:
    """Euler's method over `sigmas` [N + 1] with the skipped steps of `schedule`, as a rule of its computed steps alone.

    It gives what `engine.step_reuse` gives, without anything to do at a skipped step.
    """
    import torch

    steps = len(sigmas) - 1
    computed = sorted({0, *(step for step in schedule.computed if step < steps)})
    # Rules are linear: run on unit vectors instead of latents, they show their coefficients.
    units = torch.eye(len(computed) + 1)
    velocities, latents = Velocities(schedule.order, corrects=schedule.corrects), units[0]
    rows: list[tuple[float, ...]] = []
    for step, (sigma, until) in enumerate(pairwise(sigmas)):
        if step in computed:
            if step:
                rows.append(tuple(latents[: computed.index(step) + 1].tolist()))
            velocity = velocities.computed(sigma, until, units[computed.index(step) + 1])
        else:
            velocity = velocities.skipped(sigma, until)
        latents = latents + (until - sigma) * velocity
    rows.append(tuple(latents.tolist()))
    return Solver(noise_levels=tuple(sigmas[step] for step in computed), coefficients=tuple(rows))
