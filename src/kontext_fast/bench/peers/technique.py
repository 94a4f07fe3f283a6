"""The contract of a technique that another project wrote: an optimization that may need what we do not install."""

from __future__ import annotations

from abc import ABC
from contextlib import ExitStack
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.base import Optimization

if TYPE_CHECKING:
    from kontext_fast.optimizations.machine import Machine


class Technique(Optimization, ABC):
    """Somebody else's way to make a pipeline faster."""

    package: ClassVar[str | None] = None
    """Module that has to be importable, one of the extra `peers`; None where diffusers and torch are enough."""

    def unfit(self, machine: Machine) -> str | None:
        """Why this machine's hardware cannot run it, or None; a recipe may go on without what is unfit."""
        return None

    def refusal(self, machine: Machine) -> str | None:
        """As `unfit`, and a package that is missing; that is never a reason to go on without the technique."""
        if (reason := self.unfit(machine)) is not None:
            return reason
        if self.package is not None and find_spec(self.package) is None:
            return f"{self.name} needs the package {self.package}; run `pip install kontext-fast[peers]` and try again"
        return None


def cannot_revert(name: str, undo: ExitStack) -> None:
    """Have `undo` raise InvalidInput where the technique `name` is to be taken off, which it does not allow.

    Where `undo` closes because something failed, that failure is what the caller gets to see.
    """

    def stop(kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> bool:
        if kind is None:
            raise InvalidInput(f"{name} cannot be taken off again; load the checkpoint again.")
        return False

    undo.push(stop)
