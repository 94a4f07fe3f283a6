"""Triton, in which the kernels are written. Where it is missing they can be described, but not launched."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

__all__ = ["tl", "triton"]


def _jit(function: Any = None, **_options: Any) -> Any:
    return function or _jit


try:
    import triton
    from triton import language as tl
except ModuleNotFoundError:
    triton, tl = SimpleNamespace(jit=_jit), SimpleNamespace(constexpr=lambda value: value)
