"""`diffusers_first_block_cache`: diffusers' own version of ParaAttention's First Block Cache."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any, ClassVar

from pydantic import Field

from kontext_fast.bench.peers.block_tracer import enable_diffusers_cache
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase


class DiffusersFirstBlockCache(Optimization):
    """`enable_cache(FirstBlockCacheConfig(...))`."""

    name: ClassVar[str] = "diffusers_first_block_cache"
    summary: ClassVar[str] = "skips the blocks after the first one if its output changed little (diffusers)"
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.STEPS

    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    def label(self, *, architecture_only: bool) -> str | None:
        """That a hit rate on random weights has no meaning."""
        meaningless = f"{self.name} by threshold on random weights: hit rate meaningless"
        return meaningless if architecture_only else None

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Raises InvalidInput if another cache is enabled."""
        from diffusers.hooks import FirstBlockCacheConfig

        enable_diffusers_cache(pipe, FirstBlockCacheConfig(threshold=self.threshold), undo)
        return {}
