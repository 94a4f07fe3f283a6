"""`diffusers_fused_qkv`: diffusers' `fuse_qkv_projections`, on the transformer and the VAE."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar

from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.patching import keep_attribute

_FUSED = ("to_qkv", "to_kv", "to_added_qkv")


class DiffusersFusedQkv(Optimization):
    """Keeps the separate weights as well as the fused ones, which costs memory; `fuse_qkv` does not."""

    name: ClassVar[str] = "diffusers_fused_qkv"
    summary: ClassVar[str] = "query, key and value as one matrix product, transformer and VAE (diffusers)"
    effect: ClassVar[Effect] = Effect.NUMERIC
    phase: ClassVar[Phase] = Phase.WEIGHTS

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Fuse every attention of both."""
        keep_attribute(pipe.vae, "original_attn_processors", undo)
        attentions = [
            module
            for part in (pipe.transformer, pipe.vae)
            for module in part.modules()
            if hasattr(module, "fuse_projections")
        ]
        for attention in attentions:
            keep_attribute(attention, "fused_projections", undo)
            keep_attribute(attention, "processor", undo)
            undo.callback(_drop_fused, attention, frozenset(attention._modules))
        pipe.transformer.fuse_qkv_projections()
        pipe.vae.fuse_qkv_projections()
        return {"attentions": len(attentions)}


def _drop_fused(attention: Any, before: frozenset[str]) -> None:
    for name in _FUSED:
        if name not in before:
            attention._modules.pop(name, None)
