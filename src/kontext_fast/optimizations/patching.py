"""Replaces attributes and methods of single objects; the undo restores them, `vars(owner)` included."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from types import MethodType
from typing import Any

_ABSENT = object()


def keep_attribute(owner: Any, name: str, undo: ExitStack) -> None:
    """Have `undo` restore the instance attribute `name` of `owner`, or delete it if there is none now."""
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


Replacement = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""(original, bound; args; kwargs) -> the result."""


class _OnlyOn:
    """The function of a bound method: the replacement for its owner, the original for copies of it."""

    def __init__(self, owner: Any, original: Callable[..., Any], replacement: Replacement) -> None:
        self._owner = weakref.ref(owner)
        self._original = original
        self._replacement = replacement

    def __call__(self, owner: Any, *args: Any, **kwargs: Any) -> Any:
        bound = MethodType(self._original, owner)
        if owner is not self._owner():
            return bound(*args, **kwargs)
        return self._replacement(bound, args, kwargs)


def replace_method(owner: Any, name: str, replacement: Replacement, undo: ExitStack) -> None:
    """Replace the method `name` of `owner` until `undo` is closed."""
    original = getattr(owner, name).__func__
    set_attribute(owner, name, MethodType(_OnlyOn(owner, original, replacement), owner), undo)
