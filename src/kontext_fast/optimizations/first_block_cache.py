"""`first_block_cache`: skips most of the transformer on steps where its first block says little has changed.

The idea is ParaAttention's First Block Cache; the implementation is our own. At each step the first double block
runs. If what it adds to the image stream is close to what it added at the last computed step, the remaining blocks
are not run: what they added then is added again. Every sample of a batch decides for itself, the positive and the
negative pass of true CFG decide separately, and nothing survives a request.

A step of which no sample ran the remaining blocks is recorded as `skipped`, although the first block and the output
head did run: they are 1 of 57 blocks of FLUX.1.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.requests import Request, track_requests

_DECIDED_BY_DATA = ("threshold", "warmup_steps", "max_consecutive_skips")


class FirstBlockCache(Optimization):
    """Reuse of the remaining blocks' residual, by threshold on the first block's residual or by a fixed schedule."""

    name: ClassVar[str] = "first_block_cache"
    summary: ClassVar[str] = "skips the blocks after the first one on steps where the first one changed little"
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.STEPS

    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.08
    """A sample is skipped if mean|r - r_last| / mean|r_last| is below this; r is the first block's residual."""
    warmup_steps: Annotated[int, Field(ge=1)] = 2
    """The first steps of a request, always computed: they lay out the image."""
    max_consecutive_skips: Annotated[int, Field(ge=1)] | None = None
    """A sample skipped this often in a row is computed; None means no limit."""
    schedule: Literal["every_second"] | tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Fixes the decision instead: the 0-based steps to compute, or `every_second` (see `computed_steps`)."""

    @model_validator(mode="after")
    def _one_way_to_decide(self) -> FirstBlockCache:
        if self.schedule is None:
            return self
        if given := [name for name in _DECIDED_BY_DATA if name in self.model_fields_set]:
            raise ValueError(f"a schedule fixes the decision; leave out {', '.join(given)}")
        if self.schedule != "every_second" and 0 not in self.schedule:
            raise ValueError("a schedule must compute step 0, there is nothing to reuse before it")
        return self

    def parameters(self) -> dict[str, Any]:
        """Only the parameters of the way it decides."""
        by_data = set(_DECIDED_BY_DATA)
        return self.model_dump(mode="json", exclude={"schedule"} if self.schedule is None else by_data)

    def on_random_weights(self) -> FirstBlockCache:
        """A fixed schedule: residuals of random weights say nothing about when a trained model may skip."""
        return FirstBlockCache(schedule="every_second")

    def computed_steps(self, total: int) -> frozenset[int]:
        """The steps that a fixed schedule computes of a request of `total` steps; empty where data decides.

        `every_second` is the first two steps, the last one and every second one between.
        """
        if self.schedule is None:
            return frozenset()
        if self.schedule == "every_second":
            return frozenset({0, *range(1, total, 2), total - 1})
        return frozenset(step for step in self.schedule if step < total)

    def label(self, *, architecture_only: bool) -> str | None:
        """Which steps a schedule computes; and that a hit rate on random weights means nothing."""
        if self.schedule is None:
            meaningless = "first_block_cache by threshold on random weights: hit rate meaningless"
            return meaningless if architecture_only else None
        if self.schedule == "every_second":
            rule = "the first two, the last and every second step between computed"
        else:
            rule = f"steps {', '.join(map(str, sorted(set(self.schedule))))} computed"
        stated = f"first_block_cache on a fixed schedule: {rule}, {len(self.computed_steps(28))} of 28 steps at 28"
        return f"{stated} (hit rate on random weights means nothing)" if architecture_only else stated

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Replace `forward` on the instance `pipe.transformer`.

        Raises InvalidInput if something else replaced it before, and in a request that uses ControlNet, IP-Adapter
        or gradient checkpointing.
        """
        from kontext_fast.optimizations.first_block_forward import computed_counts, replace_forward

        facts: Facts = {"computed_steps": []}

        def count(request: Request) -> None:
            facts["computed_steps"] = computed_counts(request)

        requests = track_requests(pipe, undo)
        replace_forward(pipe.transformer, self, requests, undo)
        requests.on_completed(count, undo)
        return facts
