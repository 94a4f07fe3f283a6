"""Presets: named choices of optimizations, as pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.registry import discover

CLASSIC = ("fuse_qkv", "channels_last", "first_block_cache", "compile")

PRESETS: dict[str, Preset]
"""Every preset by name: `baseline`, `classic`, those on the engine (`faithful`, `balanced`, `fast`, `turbo`,
`low_memory`), and one per optimization that carries the optimization's name and has what it requires."""


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
        **{name: _preset(name, known[name].summary, with_required(known[name]())) for name in known},
        "classic": _preset("classic", "the four classic techniques together", classic),
        **_on_the_engine(known),
    }


def with_required(one: Optimization) -> tuple[Optimization, ...]:
    """`one` after what it requires, all with default parameters."""
    known = discover()
    required = [needed for name in sorted(one.requires) for needed in with_required(known[name]())]
    return (*required, one)


def _on_the_engine(known: Mapping[str, type[Optimization]]) -> dict[str, Preset]:
    """Schedules are functions of the number of steps, and come from the study in docs/engine.md."""
    vae = (known["channels_last"](), known["fused_vae"]())
    fp8 = (known["engine"](precision="fp8"), *vae)
    skips = known["step_reuse"]
    presets = (
        _preset("faithful", "our own forward in the checkpoint's precision", (known["engine"](), *vae)),
        _preset("balanced", "our own forward in fp8, every step in full", fp8),
        _preset("fast", "fp8, every third step computed", (*fp8, skips(computed=3))),
        _preset("low_memory", "balanced, with the text encoders in host memory", (*fp8, known["offload"]())),
        _preset("turbo", "fp8, every fourth step computed", (*fp8, skips(computed=4))),
    )
    return {preset.name: preset for preset in presets}


def _preset(name: str, summary: str, optimizations: tuple[Optimization, ...]) -> Preset:
    on_random = tuple(optimization.on_random_weights() for optimization in optimizations)
    return Preset(name, summary, optimizations, on_random if on_random != optimizations else None)
