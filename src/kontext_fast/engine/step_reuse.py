"""Steps that do not run the transformer: which ones, and what stands in for its output.

The output is a velocity that changes slowly from step to step, so at a skipped step it is extrapolated from the
computed ones before, over sigma (the noise level, which is what the schedule is uneven in). When the next velocity has
been computed, the skipped ones lie between two known ones and are known much better than they were guessed. What the
guesses missed is then made up for, at no cost: the predictor-corrector scheme of UniPC (Zhao et al., arXiv 2302.04867),
of first order, but towards the steps that were skipped and not towards the differential equation.
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

    Two, since what is guessed just before the end is corrected too late to be seen: on 32 edits of `tiny` in float32,
    the second one brought the latents five times nearer to those of all steps.
    """
    warmup = max(1, math.ceil(round(warmup_share * total, 9)))
    last = range(max(0, total - 2), total)
    return frozenset({*range(min(warmup, total)), *range(warmup - 1, total, every), *last})


@dataclass(frozen=True)
class _Guess:
    """What a skipped step was given in place of a velocity."""

    sigma: float
    length: float
    """Of the step, in sigma; negative."""
    velocity: Tensor


class Velocities:
    """The velocity to give the scheduler at every step of a group of samples, computed or not."""

    def __init__(self, order: Order, *, corrects: bool) -> None:
        self._order = order
        self._corrects = corrects
        self._known: list[tuple[float, Tensor]] = []
        self._guesses: list[_Guess] = []

    def computed(self, sigma: float, until: float, velocity: Tensor) -> Tensor:
        """What to give at a step from `sigma` to `until` whose `velocity` was computed.

        That is `velocity` itself, and where guesses are corrected, what skipped steps before it have missed as well:
        their velocities as they lie between the computed ones on either side, minus those that were given.
        """
        before = self._known[-1] if self._known else None
        self._known = [*self._known, (sigma, velocity)][-1 - self._order :]
        guesses, self._guesses = self._guesses, []
        if not (self._corrects and guesses) or before is None:
            return velocity
        now = (sigma, velocity)
        missed = sum((_between(before, now, one.sigma) - one.velocity.float()) * one.length for one in guesses)
        return (velocity.float() + missed / (until - sigma)).to(velocity.dtype)

    def skipped(self, sigma: float, until: float) -> Tensor:
        """What to give at a step from `sigma` to `until` that is not computed; of order 0 as long as only one velocity,
        or only one sigma, is known."""
        first, last = self._known[0], self._known[-1]
        velocity = last[1] if first[0] == last[0] else _between(first, last, sigma).to(last[1].dtype)
        if self._corrects:
            self._guesses.append(_Guess(sigma, until - sigma, velocity))
        return velocity


def _between(first: tuple[float, Tensor], last: tuple[float, Tensor], sigma: float) -> Tensor:
    """At `sigma`, on the line through two velocities, in float32."""
    slope = (last[1].float() - first[1].float()) / (last[0] - first[0])
    return last[1].float() + slope * (sigma - last[0])


@dataclass(frozen=True)
class FirstBlockTest:
    """Decides by what the first block adds to the image tokens, compared with the last computed step."""

    threshold: float
    """Skip if mean|r - r_last| / mean|r_last| is below this."""
    warmup_steps: int
    max_consecutive_skips: int | None

    def must_compute(self, step: int, skips: int) -> bool:
        """Whether `step` is computed whatever the first block says, after `skips` skipped ones in a row."""
        limit = self.max_consecutive_skips
        return step < self.warmup_steps or (limit is not None and skips >= limit)

    def is_close(self, change: Tensor, last: Tensor) -> bool:
        """Whether `change` is so close to `last`, of the last computed step, that the step may be skipped."""
        drift = (change.float() - last.float()).abs().mean() / last.float().abs().mean()
        return bool(drift < self.threshold)  # a NaN is not close
