"""`cache_dit`: DBCache of cache-dit, by threshold or by a mask of steps.

The first blocks always run. If their output changed little, or if a mask says so, the output of the other blocks is
replaced by their residual at the last computed step, or by a forecast of it (TaylorSeer).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from kontext_fast.bench.peers.block_tracer import BlockTracer, is_first_pass
from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import PipelineCall, track_calls
from kontext_fast.optimizations.patching import keep_attribute

Bit = Annotated[int, Field(ge=0, le=1)]


class CacheDit(Optimization):
    """`cache_dit.enable_cache`; the defaults are its own."""

    name: ClassVar[str] = "cache_dit"
    summary: ClassVar[str] = "skips the blocks after the first ones on some steps (cache-dit)"
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.STEPS
    extra: ClassVar[tuple[str, str] | None] = ("cache_dit", "peers")

    first_blocks: Annotated[int, Field(ge=1)] = 8
    """Blocks that run at every step."""
    threshold: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.08
    """Of the relative change of the residual of the first blocks."""
    mask: Literal["slow", "medium", "fast", "ultra"] | tuple[Bit, ...] | None = None
    """1 is computed; 0 may be skipped. A name is a mask of cache-dit; a tuple is resampled to the number of steps.
    None: the first eight steps are computed and then the threshold decides."""
    policy: Literal["dynamic", "static"] = "dynamic"
    """What a 0 means: skip if the threshold allows it, or always."""
    taylorseer_order: Annotated[int, Field(ge=1)] | None = None
    """Order of the forecast of the skipped blocks' residual; None: the residual of the last computed step."""

    @model_validator(mode="after")
    def _a_mask_starts_with_a_computed_step(self) -> CacheDit:
        if isinstance(self.mask, tuple) and self.mask[:1] != (1,):
            raise ValueError("a mask must compute step 0, there is nothing to reuse before it")
        if self.mask is None and self.policy == "static":
            raise ValueError("the static policy needs a mask")
        return self

    def on_random_weights(self) -> CacheDit:
        """The mask alone: residuals of random weights say nothing about when a trained model may skip."""
        return self if self.mask is None else self.model_copy(update={"policy": "static"})

    def label(self, *, architecture_only: bool) -> str | None:
        """Whether a mask or a threshold decides; on random weights a threshold has no meaning."""
        if self.policy == "static":
            return f"cache_dit on a fixed schedule: its mask; the first {self.first_blocks} blocks run at every step"
        if architecture_only:
            return "cache_dit by threshold on random weights: hit rate meaningless"
        return None

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Enable it on `pipe`. Raises InvalidInput if the transformer has too few blocks.

        A request raises Refused under true CFG, and if cache-dit has no mask for its number of steps.
        """
        import cache_dit

        # cache-dit patches `__call__` of the pipeline's class; tracking gives this pipeline a class of its own.
        track_calls(pipe, undo)
        transformer = pipe.transformer
        tracer = BlockTracer(transformer, undo)
        for name in ("forward", "_is_patched"):
            keep_attribute(transformer, name, undo)
        undo.callback(_reorder, transformer, tuple(transformer._modules))
        blocks = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
        if self.first_blocks >= blocks:
            raise InvalidInput(
                f"cache_dit computes {self.first_blocks} blocks at every step and the transformer has {blocks}; "
                "use a larger checkpoint."
            )
        forecast = self.taylorseer_order
        undo.callback(cache_dit.disable_cache, pipe)
        cache_dit.enable_cache(
            pipe,
            cache_config=cache_dit.DBCacheConfig(
                Fn_compute_blocks=self.first_blocks,
                residual_diff_threshold=self.threshold,
                steps_computation_mask=None if self.mask is None else [1],
                steps_computation_policy=self.policy,
            ),
            calibrator_config=forecast and cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=forecast),
        )

        def set_mask(request: PipelineCall, index: int) -> AbstractContextManager[Any]:
            if index > 0:
                raise Refused(
                    "cache-dit takes the second pass of true CFG for the next step; leave out the negative prompt."
                )
            # The number of steps is not known earlier, and a mask of another length would be misread.
            if self.mask is not None and is_first_pass(request, index):
                for context in _contexts(transformer):
                    context.cache_config.steps_computation_mask = self.mask_for(request.total_steps)
            return nullcontext()

        tracer.mark_passes(pipe, undo, set_mask)
        return {}

    def mask_for(self, total: int) -> list[int]:
        """1 or 0 for each step of a request of `total` steps. Raises Refused if cache-dit has no such mask."""
        import cache_dit

        if self.mask is None:
            raise ValueError("there is no mask if a threshold decides")
        if isinstance(self.mask, tuple):
            return resampled(self.mask, total)
        try:
            mask: list[int] = cache_dit.steps_mask(total_steps=total, mask_policy=self.mask)
        except AssertionError:
            raise Refused(f"cache-dit has no mask {self.mask} for {total} steps; use at least 8 steps.") from None
        return mask


def resampled(mask: tuple[int, ...], total: int) -> list[int]:
    """`mask` for another number of steps: each step has the value of the nearest step of the mask."""
    if total == 1:
        return [1]
    return [mask[round(step * (len(mask) - 1) / (total - 1))] for step in range(total)]


def _reorder(module: Any, names: tuple[str, ...]) -> None:
    """Restore the order of modules: cache-dit removes lists of blocks at each call and appends them again."""
    for name in names:
        module._modules[name] = module._modules.pop(name)


def _contexts(transformer: Any) -> list[Any]:
    manager = transformer._context_manager
    return [manager.get_context(name) for name in transformer._context_names]
