"""`diffusers_taylorseer`: computes one step in a few and forecasts what modules would give at the others."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any, ClassVar

from pydantic import Field

from kontext_fast.bench.peers.block_tracer import enable_diffusers_cache
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase


class DiffusersTaylorSeer(Optimization):
    """`enable_cache(TaylorSeerCacheConfig(...))`."""

    name: ClassVar[str] = "diffusers_taylorseer"
    summary: ClassVar[str] = "forecasts attention, or the whole output, on most steps (diffusers)"
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.STEPS

    interval: Annotated[int, Field(ge=1)] = 5
    """One step in this many is computed."""
    warmup_steps: Annotated[int, Field(ge=1)] = 3
    """Number of steps at the beginning that are always computed."""
    order: Annotated[int, Field(ge=0)] = 1
    lite: bool = False
    """Forecast the output only and run no block, instead of forecasting each attention."""

    def label(self, *, architecture_only: bool) -> str | None:
        """Which part of the model runs on the other steps."""
        what = "no block runs" if self.lite else "all but the attentions runs"
        return (
            f"{self.name} on a fixed schedule: after {self.warmup_steps} steps one in {self.interval} is computed, "
            f"on the others {what}"
        )

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Raises InvalidInput if another cache is enabled."""
        from diffusers.hooks import TaylorSeerCacheConfig

        config = TaylorSeerCacheConfig(
            cache_interval=self.interval,
            disable_cache_before_step=self.warmup_steps,
            max_order=self.order,
            taylor_factors_dtype=pipe.transformer.dtype,
            use_lite_mode=self.lite,
        )
        enable_diffusers_cache(pipe, config, undo)
        return {}
