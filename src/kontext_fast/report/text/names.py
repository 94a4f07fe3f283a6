"""Presets as people call them."""

from __future__ import annotations

import re

from kontext_fast.records.names import PEER_PREFIX
from kontext_fast.records.schema import BASELINE

_KNOWN = {
    BASELINE: "diffusers (baseline)",
    f"{PEER_PREFIX}compiled": "torch.compile",
    f"{PEER_PREFIX}compiled-float8": "torch.compile, float8",
}
_STEPS = re.compile(rf"{PEER_PREFIX}steps-(\d+)")


def plain_name(preset: str) -> str:
    """`8 plain steps` for `peer:steps-8`; a preset of ours keeps its name."""
    if steps := _STEPS.fullmatch(preset):
        return f"{steps[1]} plain steps"
    return _KNOWN.get(preset) or preset.removeprefix(PEER_PREFIX)
