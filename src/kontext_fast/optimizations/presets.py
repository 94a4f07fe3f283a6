"""Presets: named choices of optimizations, as pure data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.registry import discover

CLASSIC = ("fuse_qkv", "channels_last", "first_block_cache", "compile")

PRESETS: dict[str, Preset]
"""Every preset by name: `baseline`, `classic`, and one per optimization that carries the optimization's name."""


@dataclass(frozen=True)
class Preset:
    """A named, ordered choice of optimizations with their parameters."""

    name: str
    summary: str
    optimizations: tuple[Optimization, ...]
    on_random: tuple[Optimization, ...] | None = None
    """What the checkpoint `random` gets instead, where deciding by data means nothing; None: the same."""


def __getattr__(name: str) -> Any:
    # Computed on first use: finding the optimizations imports every module of this package, this one included.
    if name == "PRESETS":
        return _presets()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _presets() -> dict[str, Preset]:
    known = discover()
    classic = tuple(known[name]() for name in CLASSIC)
    return {
        "baseline": Preset("baseline", "the pipeline as diffusers runs it", ()),
        **{name: _preset(name, known[name].summary, (known[name](),)) for name in known},
        "classic": _preset("classic", "the four classic techniques together", classic),
    }


def _preset(name: str, summary: str, optimizations: tuple[Optimization, ...]) -> Preset:
    on_random = tuple(optimization.on_random_weights() for optimization in optimizations)
    return Preset(name, summary, optimizations, on_random if on_random != optimizations else None)
