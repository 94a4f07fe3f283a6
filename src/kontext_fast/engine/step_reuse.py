"""Skipped steps: which steps run the transformer, and what the scheduler is given at the others.

A velocity changes slowly from step to step, so at a skipped step it is extrapolated from the computed ones before it,
over sigma (the noise level, in which the steps are uneven). Once the next velocity has been computed, the skipped ones
lie between two known ones, and the error of the extrapolation is corrected at no cost: the predictor-corrector scheme
of UniPC (Zhao et al., arXiv 2302.04867), of first order, but towards the skipped steps and not towards the
differential equation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from kontext_fast.engine.transformer import EngineTransformer, Prepared
    from kontext_fast.records.schema import StepKind

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
        """What to give at a step from `sigma` to `until` whose `velocity` was computed.

        That is `velocity` itself; with correction, plus the error of the skipped steps before it: the interpolation
        between the computed velocities on either side, minus the extrapolation that was given.
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
        """What to give at a step from `sigma` to `until` that is not computed; of order 0 as long as only one velocity,
        or only one sigma, is known."""
        first, last = self._known[0], self._known[-1]
        velocity = last[1] if first[0] == last[0] else _between(first, last, sigma).to(last[1].dtype)
        if self._corrects:
            self._extrapolations.append(_Extrapolation(sigma, until - sigma, velocity))
        return velocity


def _between(first: tuple[float, Tensor], last: tuple[float, Tensor], sigma: float) -> Tensor:
    """At `sigma`, on the line through two velocities, in float32."""
    slope = (last[1].float() - first[1].float()) / (last[0] - first[0])
    return last[1].float() + slope * (sigma - last[0])


@dataclass(frozen=True)
class _EmbeddedText:
    source: Tensor
    version: int | None
    """Of `source`, which counts up whenever it is written to; None where nothing counts."""
    embedded: Tensor

    def is_of(self, text: Tensor) -> bool:
        return text is self.source and self.version is not None and text._version == self.version


class Branch:
    """Runs the steps of one branch of classifier-free guidance (the positive or the negative prompt), in order."""

    def __init__(
        self,
        engine: EngineTransformer,
        prepared: Prepared,
        sigmas: Sequence[float],
        schedule: Schedule | None = None,
    ) -> None:
        """`sigmas`: noise level at the beginning of each step, and at the end of the last. No schedule: every step is
        computed."""
        self._engine = engine
        self._prepared = prepared
        self._sigmas = sigmas
        self._schedule = schedule
        self._velocities = None if schedule is None else Velocities(schedule.order, corrects=schedule.corrects)
        self._text: _EmbeddedText | None = None
        self.kinds: list[StepKind] = []
        """Of each step so far."""

    def step(self, index: int, image: Tensor, text: Tensor) -> Tensor:
        """[B, N, C] the velocity of step `index`.

        `image` [B, N + R, C] and `text` [B, T, C'] are the transformer's inputs; text is embedded again only where it
        is another one.
        """
        if self._schedule is None or self._velocities is None:
            return self._computed(index, image, text)
        sigma, until = self._sigmas[index : index + 2]
        if index in self._schedule.computed or not self.kinds:
            return self._velocities.computed(sigma, until, self._computed(index, image, text))
        self.kinds.append("skipped")
        return self._velocities.skipped(sigma, until)

    def _computed(self, index: int, image: Tensor, text: Tensor) -> Tensor:
        if self._text is None or not self._text.is_of(text):
            # Writes to tensors of inference mode are not counted, so those are embedded at every step.
            version = None if text.is_inference() else text._version
            self._text = _EmbeddedText(text, version, self._engine.embed_text(text))
        self.kinds.append("full")
        return self._engine.step(self._prepared, index, image, self._text.embedded)
