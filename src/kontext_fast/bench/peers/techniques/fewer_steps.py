"""`fewer_steps`: fewer steps of the unchanged pipeline, the alternative that every cache of steps has to beat."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.presets import Plan
from kontext_fast.records.schema import Cell

USUAL: Final = 28


class FewerSteps(Optimization):
    """Changes nothing in the pipeline: the benchmark runs and records `steps(requested)` steps instead."""

    name: ClassVar[str] = "fewer_steps"
    summary: ClassVar[str] = "the same pipeline with fewer steps"
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.STEPS

    steps_of_28: Annotated[int, Field(ge=1, lt=USUAL)]
    """Steps that run for a request of 28; other numbers of steps are reduced in proportion."""

    def steps(self, requested: int) -> int:
        """Number of steps that run for a request of `requested` steps."""
        return max(1, round(requested * self.steps_of_28 / USUAL))

    def label(self, *, architecture_only: bool) -> str | None:
        """That its workload has fewer steps than the others of the table."""
        return f"runs {self.steps_of_28} steps where {USUAL} are asked for"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        return {}


def cell_for(plan: Plan, requested: Cell) -> Cell:
    """The cell that is measured where a suite requests `requested` of `plan`: the same, or one with fewer steps."""
    for optimization in plan.optimizations:
        if isinstance(optimization, FewerSteps):
            return requested.model_copy(update={"steps": optimization.steps(requested.steps)})
    return requested
