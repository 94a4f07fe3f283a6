"""Replicate's production recipe for Kontext."""

from __future__ import annotations

from kontext_fast.bench.peers.recipes.diffusers import GPU_BASE
from kontext_fast.bench.peers.techniques.extrapolated_steps import ExtrapolatedSteps
from kontext_fast.optimizations.presets import declare_preset

REPLICATE = declare_preset(
    "peer:replicate",
    "the first three steps, the last three and every third between, the others along a line: 13 of 28 steps",
    (ExtrapolatedSteps(),),
    optional=GPU_BASE,
    source="https://github.com/replicate/cog-flux-kontext",
)
