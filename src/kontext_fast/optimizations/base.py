"""The contract of an optimization: one technique, one file, applied to a pipeline and reverted from it.

A module in this package that defines a public `Optimization` subclass is discovered by `discover()`; nothing
else has to be edited. Modules import torch and diffusers inside functions, so that listing costs no import.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from kontext_fast.optimizations.machine import Machine


class Effect(str, Enum):
    """What an optimization does to the output."""

    EXACT = "exact"
    """Bit-identical."""
    NUMERIC = "numeric"
    """Differs by rounding only."""
    LOSSY = "lossy"
    """Approximates; only a quality verdict can say what that costs."""


class Phase(IntEnum):
    """Where in a plan an optimization is applied; plans are sorted by it."""

    WEIGHTS = 10
    """Rewrites or fuses weights."""
    LAYOUT = 20
    """Changes memory layout."""
    STEPS = 30
    """Decides which parts of a step run."""
    COMPILE = 40
    """Turns what the others left into compiled code; must see the final module."""


class Optimization(BaseModel, ABC):
    """One technique with its parameters (the model's fields). Pure, frozen data until `apply` is called."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    """The word used in presets, records and the CLI."""
    summary: ClassVar[str]
    """One line for people."""
    effect: ClassVar[Effect]
    phase: ClassVar[Phase]
    conflicts: ClassVar[frozenset[str]] = frozenset()
    """Names it cannot be combined with; the planner makes the relation symmetric."""

    def refusal(self, machine: Machine) -> str | None:
        """Why this machine cannot run it, as one sentence that names the remedy, or None."""
        return None

    @abstractmethod
    def apply(self, pipe: Any, undo: ExitStack) -> None:
        """Change `pipe` and register on `undo` whatever restores it, bit for bit.

        A partial failure is fine: the caller closes `undo`, so register each undo before or right after its change.
        """
