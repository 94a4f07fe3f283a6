"""How the presets of an ablation are named in records: `classic-only-compile`, `classic-without-compile`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ONLY: Final = "-only-"
WITHOUT: Final = "-without-"


@dataclass(frozen=True)
class Ablated:
    """A preset's name taken apart."""

    preset: str
    kind: str
    """ONLY or WITHOUT."""
    optimization: str


def take_apart(name: str) -> Ablated | None:
    """What the name of an ablation means; None for the name of any other preset."""
    for kind in (ONLY, WITHOUT):
        preset, found, optimization = name.partition(kind)
        if found and preset and optimization:
            return Ablated(preset, kind, optimization)
    return None
