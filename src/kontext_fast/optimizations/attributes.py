"""Changes one attribute of one object so that the undo leaves no trace, not even in `vars(owner)`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

_ABSENT = object()


def keep_attribute(owner: Any, name: str, undo: ExitStack) -> None:
    """Have `undo` bring the instance attribute `name` of `owner` back to what it is now, or take it away again."""
    before = vars(owner).get(name, _ABSENT)

    def restore() -> None:
        if before is not _ABSENT:
            setattr(owner, name, before)
        elif name in vars(owner):
            delattr(owner, name)

    undo.callback(restore)


def set_attribute(owner: Any, name: str, value: Any, undo: ExitStack) -> None:
    """Set the instance attribute `name` of `owner` until `undo` is closed."""
    keep_attribute(owner, name, undo)
    setattr(owner, name, value)
