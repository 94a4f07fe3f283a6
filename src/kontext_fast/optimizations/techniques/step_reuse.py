"""`step_reuse`: some steps do not run the transformer; their velocity is extrapolated from computed ones.

Which steps those are is fixed by a schedule, or decided by a test of the first block: every sample of a batch then
decides for itself, and so do the positive and the negative pass of true CFG. Nothing survives a request.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from kontext_fast.engine.step_reuse import FirstBlockTest, computed_steps
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import PipelineCall, track_calls

if TYPE_CHECKING:
    from kontext_fast.engine.passes import Reuse


class StepReuse(Optimization):
    """Approximates the velocity at skipped steps by that of earlier steps, or by the line through the last two, and
    makes up for the error once the next one is computed."""

    name: ClassVar[str] = "step_reuse"
    summary: ClassVar[str] = "skips whole steps, extrapolating the transformer's output from computed ones"
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.STEPS
    requires: ClassVar[frozenset[str]] = frozenset({"engine"})

    order: Literal[0, 1] = 1
    """0: the last computed velocity; 1: the line through the last two, over sigma."""
    corrector: bool = True
    """At the next computed step, make up for what the skipped ones before it missed (see `engine.step_reuse`)."""
    warmup_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """This share of the steps (rounded up, at least one) is always computed first."""
    computed: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=0)], ...] | None = 3
    """After that: one step in this many, and the last two. Or exactly these 0-based steps, `warmup_share` left aside.
    None: the first block decides, by `threshold`."""
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """A sample is skipped if mean|r - r_last| / mean|r_last| is below this, r being what the first block adds to the
    image tokens and r_last the same at the last computed step."""
    max_consecutive_skips: Annotated[int, Field(ge=1)] | None = None
    """With a threshold: a sample skipped this often in a row is computed; None means no limit."""

    @model_validator(mode="after")
    def _one_way_to_decide(self) -> StepReuse:
        if (self.computed is None) != (self.threshold is not None):
            raise ValueError("give either a schedule (computed) or, with computed=None, a threshold")
        if self.computed is not None and self.max_consecutive_skips is not None:
            raise ValueError("a schedule fixes the decision; leave out max_consecutive_skips")
        if isinstance(self.computed, tuple):
            if 0 not in self.computed:
                raise ValueError("a schedule must compute step 0, there is nothing to extrapolate from before it")
            if "warmup_share" in self.model_fields_set:
                raise ValueError("given steps are the whole schedule; leave out warmup_share")
        return self

    def parameters(self) -> dict[str, Any]:
        """Only the parameters of the way it decides."""
        unused = {"warmup_share"} if isinstance(self.computed, tuple) else set()
        unused |= set() if self.computed is None else {"threshold", "max_consecutive_skips"}
        return self.model_dump(mode="json", exclude=unused)

    def on_random_weights(self) -> StepReuse:
        """A schedule in place of a test: what random weights add says nothing about when a trained model may skip."""
        if self.computed is not None:
            return self
        return StepReuse(order=self.order, corrector=self.corrector, warmup_share=self.warmup_share)

    def computed_steps(self, total: int) -> frozenset[int] | None:
        """The steps that the schedule computes of a request of `total` steps; None where a test decides."""
        if self.computed is None:
            return None
        if isinstance(self.computed, tuple):
            return frozenset(step for step in self.computed if step < total)
        return computed_steps(total, every=self.computed, warmup_share=self.warmup_share)

    def label(self, *, architecture_only: bool) -> str | None:
        """Which steps are computed; and that a hit rate on random weights means nothing."""
        steps = self.computed_steps(28)
        if steps is None:
            return "step_reuse by threshold on random weights: hit rate meaningless" if architecture_only else None
        listed = ", ".join(map(str, sorted(steps)))
        return f"step_reuse on a fixed schedule: {len(steps)} of 28 steps computed at 28 ({listed})"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Have the engine skip steps. Raises InvalidInput without an engine; requests raise it where there is a
        `corrector` and the scheduler is no plain FlowMatchEulerDiscreteScheduler.

        The fact `computed_steps` counts them per pass and sample, as of the most recent request.
        """
        from kontext_fast.optimizations.techniques.engine_forward import computed_counts, require_engine

        facts: Facts = {"computed_steps": []}

        def count(request: PipelineCall) -> None:
            facts["computed_steps"] = computed_counts(request)

        require_engine(pipe.transformer, self.name).add_rule(self._rule, undo)
        track_calls(pipe, undo).on_completed(count, undo)
        return facts

    def _rule(self, reuse: Reuse, total: int) -> Reuse:
        computed, test = self.computed_steps(total), self._test(total)
        return replace(reuse, order=self.order, corrects=self.corrector, computed=computed, test=test)

    def _test(self, total: int) -> FirstBlockTest | None:
        if self.threshold is None:
            return None
        warmup = max(1, math.ceil(round(self.warmup_share * total, 9)))
        return FirstBlockTest(self.threshold, warmup, self.max_consecutive_skips)
