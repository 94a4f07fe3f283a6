"""Replaces one method of one object so that a copy of the object has the original again."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from types import MethodType
from typing import Any

from kontext_fast.optimizations.attributes import set_attribute

Replacement = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Is given the original, bound, and the arguments."""


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
    """Have calls of `owner.name` go to `replacement` until `undo` is closed."""
    original = getattr(owner, name).__func__
    set_attribute(owner, name, MethodType(_OnlyOn(owner, original, replacement), owner), undo)
