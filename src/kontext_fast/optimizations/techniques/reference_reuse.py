"""`reference_reuse`: the tokens of the input image run at some steps only; between them their keys and values stay."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from kontext_fast.engine.reference_reuse import refresh_steps
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase

if TYPE_CHECKING:
    from kontext_fast.engine.passes import Reuse


class ReferenceReuse(Optimization):
    """Approximates: between refreshes the reference is seen as it was at an earlier timestep, beside an earlier state
    of the image. Text-to-image has no reference tokens and stays as it is."""

    name: ClassVar[str] = "reference_reuse"
    summary: ClassVar[str] = "runs the input image's tokens at some steps only, and attends to them at the others"
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.STEPS
    requires: ClassVar[frozenset[str]] = frozenset({"engine"})

    refreshed: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=0)], ...] = 7
    """One step in this many refreshes, from the first on; or exactly these 0-based steps. A refresh that falls on a
    skipped step is made up for at the next computed one."""
    keep: Literal["reference", "all"] = "reference"
    """What is kept per block: keys and values of the reference (2.9 GB at full size in bf16, copied at every reuse) or
    of all tokens (6.1 GB, nothing is copied). The image is the same."""

    @field_validator("refreshed")
    @classmethod
    def _starts_with_the_first(cls, refreshed: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(refreshed, tuple) and 0 not in refreshed:
            raise ValueError("step 0 must refresh, there is nothing to reuse before it")
        return refreshed

    def label(self, *, architecture_only: bool) -> str | None:
        """Which steps refresh."""
        steps = sorted(refresh_steps(self.refreshed, 28))
        return f"reference_reuse on a fixed schedule: steps {', '.join(map(str, steps))} of 28 refresh at 28"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Have the engine rest reference tokens between refreshes. Raises InvalidInput without an engine."""
        from kontext_fast.engine.token_memory import Keep
        from kontext_fast.optimizations.techniques.engine_forward import require_engine

        def rule(reuse: Reuse, total: int) -> Reuse:
            return replace(reuse, keep=Keep(self.keep), refreshes=refresh_steps(self.refreshed, total))

        require_engine(pipe.transformer, self.name).add_rule(rule, undo)
        return {}
