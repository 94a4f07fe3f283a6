"""The steps of one pass (positive or negative) of one request, each in full, in part or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kontext_fast.engine.reference_reuse import refresh_due
from kontext_fast.engine.step_reuse import FirstBlockTest, Order, Velocities
from kontext_fast.engine.token_memory import Keep
from kontext_fast.engine.transformer import EVERY_SAMPLE, EngineTransformer, Prepared
from kontext_fast.records.schema import StepKind


@dataclass(frozen=True)
class Reuse:
    """Which parts of which steps run; the defaults run everything."""

    keep: Keep = Keep.NOTHING
    """Must be more than nothing where `refreshes` leaves steps out."""
    refreshes: frozenset[int] | None = None
    """Steps at which reference tokens run; None: at every computed step."""
    computed: frozenset[int] | None = None
    """Steps that are computed; None: all, unless `test` says otherwise."""
    test: FirstBlockTest | None = None
    order: Order = 1
    corrects: bool = False
    """Whether a computed step makes up for what the guesses of the skipped ones before it missed. Right only where the
    scheduler adds velocity times the change of sigma (Euler's method)."""


@dataclass
class _Group:
    """Samples that decide together, and what they remember."""

    samples: slice
    velocities: Velocities
    last_refresh: int | None = None
    change: Tensor | None = None
    """What the first block added to the image tokens at the last computed step."""
    skips: int = 0
    """In a row."""
    kinds: list[StepKind] = field(default_factory=list)


@dataclass(frozen=True)
class _Text:
    """What was embedded, and what came of it."""

    source: Tensor
    version: int | None
    """Of `source`, which counts up whenever it is written to; None where nothing counts."""
    embedded: Tensor

    def is_of(self, text: Tensor) -> bool:
        return text is self.source and self.version is not None and text._version == self.version


class Pass:
    """Runs the steps in order. Where a test decides, each sample decides for itself, as if it were alone."""

    def __init__(
        self, engine: EngineTransformer, prepared: Prepared, sigmas: Sequence[float], batch: int, reuse: Reuse
    ) -> None:
        """`sigmas`: noise level at the beginning of each step, and at the end of the last."""
        self._engine = engine
        self._prepared = prepared
        self._sigmas = sigmas
        self._reuse = reuse
        self._text: _Text | None = None
        alone = [slice(index, index + 1) for index in range(batch)]
        self._groups = [
            _Group(samples, Velocities(reuse.order, corrects=reuse.corrects))
            for samples in (alone if reuse.test is not None and batch > 1 else [EVERY_SAMPLE])
        ]
        self.batch = batch

    def step(self, index: int, image: Tensor, text: Tensor) -> tuple[Tensor, list[StepKind]]:
        """[B, N, C] the velocity of step `index`, and what the step was for each group of samples.

        `image` [B, N + R, C] and `text` [B, T, C'] are the transformer's inputs; text is embedded when it is another.
        """
        if self._text is None or not self._text.is_of(text):
            # Writes to tensors of inference mode are not counted, so those are embedded at every step.
            version = None if text.is_inference() else text._version
            self._text = _Text(text, version, self._engine.embed_text(text))
        velocities = [self._advance(group, index, image[group.samples]) for group in self._groups]
        velocity = velocities[0] if len(velocities) == 1 else torch.cat(velocities)
        return velocity, [group.kinds[-1] for group in self._groups]

    def computed_counts(self) -> list[int]:
        """Computed steps so far, per sample."""
        counts = [sum(kind != "skipped" for kind in group.kinds) for group in self._groups]
        return counts if len(counts) == self.batch else counts * self.batch

    def _advance(self, group: _Group, index: int, image: Tensor) -> Tensor:
        computed, (sigma, until) = self._reuse.computed, self._sigmas[index : index + 2]
        velocity: Tensor | None = None
        if computed is None or index in computed or not group.kinds:
            velocity = self._compute(group, index, image)
        if velocity is None:
            group.skips += 1
            group.kinds.append("skipped")
            return group.velocities.skipped(sigma, until)
        group.skips = 0
        return group.velocities.computed(sigma, until, velocity)

    def _compute(self, group: _Group, index: int, image: Tensor) -> Tensor | None:
        """The transformer's output, or None if the first block says that the step may be skipped."""
        layout, refreshes = self._prepared.layout, self._reuse.refreshes
        # Without reference tokens there is nothing to leave out.
        full = not layout.reference or refreshes is None or refresh_due(refreshes, index, group.last_refresh)
        changes: list[Tensor] = []

        def proceed(change: Tensor) -> bool:
            changes.append(change)
            test, last = self._reuse.test, group.change
            assert test is not None
            return last is None or test.must_compute(index, group.skips) or not test.is_close(change, last)

        assert self._text is not None
        velocity = self._engine.step(
            self._prepared,
            index,
            image,
            self._text.embedded[group.samples],
            active=None if full else layout.output_end,
            samples=group.samples,
            proceed=None if self._reuse.test is None else proceed,
        )
        if velocity is None:
            return None
        group.kinds.append("refresh" if full else "reuse")
        group.change = changes[0] if changes else None
        if full:
            group.last_refresh = index
        return velocity
