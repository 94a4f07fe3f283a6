"""`diffusers_magcache`: skips all blocks while magnitude ratios, measured once per model, predict a small error."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any, ClassVar

from pydantic import Field

from kontext_fast.bench.peers.block_tracer import enable_diffusers_cache
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase

# fmt: off
KONTEXT_RATIOS = (
    1.0, 1.19531, 1.07812, 1.02344, 1.03125, 1.00781, 1.02344, 1.01562, 1.01562, 1.0, 1.01562, 1.0, 1.00781, 1.0,
    1.00781, 1.0, 1.00781, 0.99609, 1.01562, 0.99219, 1.0, 0.99219, 0.98438, 0.99609, 0.96484, 0.96094, 0.9375, 0.93359,
)
"""MagCache's author measured them on FLUX.1-Kontext at 28 steps; diffusers ships those of text-to-image only."""
# fmt: on


class DiffusersMagCache(Optimization):
    """`enable_cache(MagCacheConfig(...))`. The ratios alone decide which steps are skipped, not the data."""

    name: ClassVar[str] = "diffusers_magcache"
    summary: ClassVar[str] = "skips all blocks on a schedule from measured magnitude ratios (diffusers, MagCache)"
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.STEPS

    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05
    max_skips: Annotated[int, Field(ge=0)] = 4
    """Maximum number of consecutive steps."""
    retention: Annotated[float, Field(ge=0, le=1)] = 0.2
    """The share of the steps, from the first one on, that is always computed."""
    ratios: tuple[float, ...] = KONTEXT_RATIOS

    def label(self, *, architecture_only: bool) -> str | None:
        """That the schedule is that of the trained model."""
        return f"{self.name} on the schedule that the ratios of the trained FLUX.1-Kontext give"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Raises InvalidInput if another cache is enabled."""
        from diffusers.hooks import MagCacheConfig

        def config_for(total: int) -> Any:
            # diffusers interpolates the ratios to the number of steps.
            return MagCacheConfig(
                threshold=self.threshold,
                max_skip_steps=self.max_skips,
                retention_ratio=self.retention,
                num_inference_steps=total,
                mag_ratios=list(self.ratios),
            )

        config = config_for(len(self.ratios))

        def fit(total: int) -> None:
            # All hooks share this object, and none of them reads the number of steps from the pipeline.
            vars(config).update(vars(config_for(total)))

        enable_diffusers_cache(pipe, config, undo, on_first_pass=fit)
        return {}
