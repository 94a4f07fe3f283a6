"""`step_reuse`: some steps do not run the transformer; their velocity is extrapolated from computed ones.

A schedule says which steps those are, for all samples of a batch and both branches of true CFG. Nothing survives a
request.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from kontext_fast.engine.step_reuse import Schedule, computed_steps
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import PipelineCall, track_calls
from kontext_fast.optimizations.patching import original_class


class StepReuse(Optimization):
    """Approximates the velocity at skipped steps by that of earlier steps, or by the line through the last two, and
    corrects the error once the next one is computed."""

    name: ClassVar[str] = "step_reuse"
    summary: ClassVar[str] = "skips whole steps, extrapolating the transformer's output from computed ones"
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.STEPS
    requires: ClassVar[frozenset[str]] = frozenset({"engine"})
    exchangeable: ClassVar[bool] = True

    order: Literal[0, 1] = 1
    """0: the last computed velocity; 1: the line through the last two, over sigma."""
    corrector: bool = True
    """At the next computed step, correct the error of the skipped ones before it (see `engine.step_reuse`)."""
    warmup_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """This share of the steps (rounded up, at least one) is always computed first."""
    computed: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=0)], ...] = 3
    """After that: one step in this many, and the last two. Or exactly these 0-based steps, without `warmup_share`."""

    @model_validator(mode="after")
    def _steps_are_the_whole_schedule(self) -> StepReuse:
        if isinstance(self.computed, tuple):
            if 0 not in self.computed:
                raise ValueError("a schedule must compute step 0, there is nothing to extrapolate from before it")
            if "warmup_share" in self.model_fields_set:
                raise ValueError("given steps are the whole schedule; leave out warmup_share")
        return self

    def parameters(self) -> dict[str, Any]:
        """`warmup_share` only where it matters."""
        return self.model_dump(mode="json", exclude={"warmup_share"} if isinstance(self.computed, tuple) else None)

    def computed_steps(self, total: int) -> frozenset[int]:
        """The steps that are computed in a request of `total` steps."""
        if isinstance(self.computed, tuple):
            return frozenset(step for step in self.computed if step < total)
        return computed_steps(total, every=self.computed, warmup_share=self.warmup_share)

    def label(self, *, architecture_only: bool) -> str | None:
        """Which steps are computed."""
        steps = sorted(self.computed_steps(28))
        listed = ", ".join(map(str, steps))
        return f"step_reuse on a fixed schedule: {len(steps)} of 28 steps computed at 28 ({listed})"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Have the engine skip steps. Raises InvalidInput without an engine; requests raise it where there is a
        `corrector` and the scheduler is no plain FlowMatchEulerDiscreteScheduler.

        The fact `computed_steps` counts them per branch of true CFG and sample, as of the most recent request.
        """
        from kontext_fast.optimizations.techniques.engine import require_engine

        facts: Facts = {"computed_steps": []}

        def count(call: PipelineCall) -> None:
            facts["computed_steps"] = call.computed_counts()

        require_engine(pipe.transformer, self.name).follow(self._schedule, undo)
        track_calls(pipe, undo).on_completed(count, undo)
        return facts

    def _schedule(self, scheduler: Any, sigmas: Sequence[float]) -> Schedule:
        if self.corrector:
            _require_euler(scheduler, sigmas)
        return Schedule(self.computed_steps(len(sigmas) - 1), self.order, self.corrector)


def _require_euler(scheduler: Any, sigmas: Sequence[float]) -> None:
    """Raises InvalidInput where a step does not add its velocity times the change of sigma, all the way to zero."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    euler = original_class(type(scheduler)).step is FlowMatchEulerDiscreteScheduler.step
    if not euler or scheduler.config.stochastic_sampling or scheduler.config.invert_sigmas:
        raise InvalidInput(
            f"step_reuse corrects its guesses for Euler's method only, not for this {type(scheduler).__name__}; "
            "use a plain FlowMatchEulerDiscreteScheduler, or StepReuse(corrector=False)."
        )
    if any(after >= before for before, after in pairwise(sigmas)):
        raise InvalidInput(
            "step_reuse corrects its guesses only where the noise falls at every step; keep sigmas apart."
        )
