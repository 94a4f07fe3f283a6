"""`elsewhere`: a peer that cannot be run beside this package, with the reason."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from kontext_fast.bench.peers.technique import Technique
from kontext_fast.errors import Refused
from kontext_fast.optimizations.base import Effect, Facts, Phase

if TYPE_CHECKING:
    from kontext_fast.optimizations.machine import Machine


class Unsupported(Technique):
    """Refused everywhere, so that a comparison says why somebody is missing from it."""

    name: ClassVar[str] = "elsewhere"
    summary: ClassVar[str] = "cannot be run beside this package"
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.STEPS

    reason: str
    """One sentence that says what to do instead."""

    def refusal(self, machine: Machine) -> str | None:
        """Always the reason."""
        return self.reason

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Raises Refused."""
        raise Refused(f"{self.reason}.")
