"""Steps that do not run the transformer: which ones, and what stands in for its output.

The output is a velocity that changes slowly from step to step, so at a skipped step it is extrapolated from the
computed ones before, over sigma (the noise level, which is what the schedule is uneven in).
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
    in `every`, and the last."""
    warmup = max(1, math.ceil(round(warmup_share * total, 9)))
    return frozenset({*range(min(warmup, total)), *range(warmup - 1, total, every), total - 1})


class Velocities:
    """The computed velocities that a skipped step needs."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._known: list[tuple[float, Tensor]] = []

    def note(self, sigma: float, velocity: Tensor) -> None:
        """Remember what was computed at `sigma`."""
        self._known = [*self._known[-self._order :], (sigma, velocity)] if self._order else [(sigma, velocity)]

    def at(self, sigma: float) -> Tensor:
        """The velocity extrapolated to `sigma`; of order 0 as long as only one, or only one sigma, is known."""
        last_sigma, last = self._known[-1]
        first_sigma, first = self._known[0]
        if first_sigma == last_sigma:
            return last
        slope = (last.float() - first.float()) / (last_sigma - first_sigma)
        return (last.float() + slope * (sigma - last_sigma)).to(last.dtype)


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
