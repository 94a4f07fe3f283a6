"""`fewer_steps`: asks the pipeline for fewer steps, which is what every cache of steps has to be better than."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.plan import Plan
from kontext_fast.records.schema import Cell

USUAL: Final = 28


class FewerSteps(Optimization):
    """Nothing is done to the pipeline: whoever calls it asks for `steps(asked)` steps and records that."""

    name: ClassVar[str] = "fewer_steps"
    summary: ClassVar[str] = "the same pipeline with fewer steps"
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.STEPS

    steps_of_28: Annotated[int, Field(ge=1, lt=USUAL)]
    """Steps run where 28 are asked for; other numbers of steps are lowered in proportion."""

    def steps(self, asked: int) -> int:
        """How many steps are run where a workload asks for `asked`."""
        return max(1, round(asked * self.steps_of_28 / USUAL))

    def label(self, *, architecture_only: bool) -> str | None:
        """That its workload has fewer steps than what it stands beside."""
        return f"runs {self.steps_of_28} steps where {USUAL} are asked for"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        return {}


def cell_for(plan: Plan, requested: Cell) -> Cell:
    """The cell that is measured where a suite requests `requested` of `plan`: the same, or one with fewer steps."""
    for optimization in plan.optimizations:
        if isinstance(optimization, FewerSteps):
            return requested.model_copy(update={"steps": optimization.steps(requested.steps)})
    return requested
