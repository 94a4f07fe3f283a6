"""Skipped steps: which steps run the transformer, and the velocity of the others.

A velocity changes slowly from step to step, so at a skipped step it is extrapolated from the computed ones before it,
over sigma (the noise level, in which the steps are uneven). Once the next velocity has been computed, the skipped ones
lie between two known ones, and the error of the extrapolation is corrected at no cost: the predictor-corrector scheme
of UniPC (Zhao et al., arXiv 2302.04867), of first order, but towards the skipped steps and not towards the
differential equation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Order = Literal[0, 1]
"""0: the last velocity again; 1: the line through the last two."""


def computed_steps(total: int, *, every: int, warmup_share: float) -> frozenset[int]:
    """The 0-based steps of `total` to compute: a first share of them (rounded up, at least one), from there on one
    in `every`, and the last two.

    Two, since an extrapolation just before the end is corrected too late to be seen: on 32 edits of `tiny` in float32,
    the second one brought the latents five times nearer to those of all steps.
    """
    warmup = max(1, math.ceil(round(warmup_share * total, 9)))
    last = range(max(0, total - 2), total)
    return frozenset({*range(min(warmup, total)), *range(warmup - 1, total, every), *last})


@dataclass(frozen=True)
class Schedule:
    """Which steps of a request are computed, for all samples of the batch, and how the others are extrapolated."""

    computed: frozenset[int]
    order: Order
    corrects: bool
    """Whether a computed step corrects the extrapolation error of the skipped ones before it. Right only where the
    scheduler adds velocity times the change of sigma (Euler's method)."""


@dataclass(frozen=True)
class _Extrapolation:
    """The velocity of a skipped step."""

    sigma: float
    length: float
    """Of the step, in sigma; negative."""
    velocity: Tensor


class Velocities:
    """The velocity to give the scheduler at every step, computed or skipped."""

    def __init__(self, order: Order, *, corrects: bool) -> None:
        self._order = order
        self._corrects = corrects
        self._known: list[tuple[float, Tensor]] = []
        self._extrapolations: list[_Extrapolation] = []

    def computed(self, sigma: float, until: float, velocity: Tensor) -> Tensor:
        """The velocity for a step from `sigma` to `until` whose `velocity` was computed.

        That is `velocity` itself; with correction, plus the error of the skipped steps before it: the interpolation
        between the computed velocities on either side, minus the extrapolation that was used.
        """
        before = self._known[-1] if self._known else None
        self._known = [*self._known, (sigma, velocity)][-1 - self._order :]
        skipped, self._extrapolations = self._extrapolations, []
        if not (self._corrects and skipped) or before is None:
            return velocity
        now = (sigma, velocity)
        missed = sum((_between(before, now, step.sigma) - step.velocity.float()) * step.length for step in skipped)
        return (velocity.float() + missed / (until - sigma)).to(velocity.dtype)

    def skipped(self, sigma: float, until: float) -> Tensor:
        """The velocity for a step from `sigma` to `until` that is not computed; of order 0 while only one velocity or
        one sigma is known."""
        first, last = self._known[0], self._known[-1]
        velocity = last[1] if first[0] == last[0] else _between(first, last, sigma).to(last[1].dtype)
        if self._corrects:
            self._extrapolations.append(_Extrapolation(sigma, until - sigma, velocity))
        return velocity


def _between(first: tuple[float, Tensor], last: tuple[float, Tensor], sigma: float) -> Tensor:
    """The value at `sigma` on the line through two velocities, in float32."""
    slope = (last[1].float() - first[1].float()) / (last[0] - first[0])
    return last[1].float() + slope * (sigma - last[0])
