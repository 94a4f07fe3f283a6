"""`diffusers_first_block_cache`: diffusers' own version of ParaAttention's First Block Cache."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any, ClassVar

from pydantic import Field

from kontext_fast.bench.peers.techniques import diffusers_hooks
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase


class DiffusersFirstBlockCache(Optimization):
    """`enable_cache(FirstBlockCacheConfig(...))`, with each pass named."""

    name: ClassVar[str] = "diffusers_first_block_cache"
    summary: ClassVar[str] = "skips the blocks after the first one where that changed little (diffusers)"
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.STEPS

    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    def label(self, *, architecture_only: bool) -> str | None:
        """That a hit rate on random weights means nothing."""
        meaningless = f"{self.name} by threshold on random weights: hit rate meaningless"
        return meaningless if architecture_only else None

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Raises InvalidInput where another cache is enabled."""
        from diffusers.hooks import FirstBlockCacheConfig

        diffusers_hooks.enable(pipe, FirstBlockCacheConfig(threshold=self.threshold), undo)
        return {}
