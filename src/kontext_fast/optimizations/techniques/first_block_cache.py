"""`first_block_cache`: skips most of the transformer on steps where the output of its first block has changed little.

The idea is ParaAttention's First Block Cache; the implementation is our own. At each step the first double block
runs. If what it adds to the image stream is close to what it added at the last computed step, the remaining blocks
are not run: what they added then is added again. Every sample of a batch decides for itself, the positive and the
negative pass of true CFG decide separately, and nothing survives a request.

A step of which no sample ran the remaining blocks is recorded as `skipped`, although the first block and the output
head did run: they are 1 of 57 blocks of FLUX.1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import MethodType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from kontext_fast.errors import InvalidInput, KontextError
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import CallTracker, PipelineCall, track_calls
from kontext_fast.optimizations.patching import group_hook, require_undisturbed

if TYPE_CHECKING:
    from torch import Tensor


_DECIDED_BY_DATA = ("threshold", "warmup_steps", "max_consecutive_skips")


class FirstBlockCache(Optimization):
    """Reuse of the remaining blocks' residual, by threshold on the first block's residual or by a fixed schedule."""

    name: ClassVar[str] = "first_block_cache"
    summary: ClassVar[str] = "skips the blocks after the first one on steps where the first one changed little"
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.STEPS

    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.08
    """A sample is skipped if mean|r - r_last| / mean|r_last| is below this; r is the first block's residual."""
    warmup_steps: Annotated[int, Field(ge=1)] = 2
    """The first steps of a call, always computed, since they decide the layout of the image."""
    max_consecutive_skips: Annotated[int, Field(ge=1)] | None = None
    """A sample skipped this often in a row is computed; None means no limit."""
    schedule: Literal["every_second"] | tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Fixes the decision instead: the 0-based steps to compute, or `every_second` (see `computed_steps`)."""

    @model_validator(mode="after")
    def _one_way_to_decide(self) -> FirstBlockCache:
        if self.schedule is None:
            return self
        if superfluous := [name for name in _DECIDED_BY_DATA if name in self.model_fields_set]:
            raise ValueError(f"a schedule fixes the decision; leave out {', '.join(superfluous)}")
        if self.schedule != "every_second" and 0 not in self.schedule:
            raise ValueError("a schedule must compute step 0, there is nothing to reuse before it")
        return self

    def parameters(self) -> dict[str, Any]:
        """Those of the schedule, or those of the threshold."""
        by_data = set(_DECIDED_BY_DATA)
        return self.model_dump(mode="json", exclude={"schedule"} if self.schedule is None else by_data)

    def on_random_weights(self) -> FirstBlockCache:
        """A fixed schedule, since residuals of random weights do not show when a trained model may skip."""
        return FirstBlockCache(schedule="every_second")

    def computed_steps(self, total: int) -> frozenset[int]:
        """The steps that a fixed schedule computes of a request of `total` steps; empty where data decides.

        `every_second` is the first two steps, the last one and every second one between.
        """
        if self.schedule is None:
            return frozenset()
        if self.schedule == "every_second":
            return frozenset({0, *range(1, total, 2), total - 1})
        return frozenset(step for step in self.schedule if step < total)

    def label(self, *, architecture_only: bool) -> str | None:
        """Which steps a schedule computes; and that a hit rate on random weights means nothing."""
        if self.schedule is None:
            meaningless = "first_block_cache by threshold on random weights: hit rate meaningless"
            return meaningless if architecture_only else None
        if self.schedule == "every_second":
            rule = "the first two, the last and every second step between computed"
        else:
            rule = f"steps {', '.join(map(str, sorted(set(self.schedule))))} computed"
        stated = f"first_block_cache on a fixed schedule: {rule}, {len(self.computed_steps(28))} of 28 steps at 28"
        return f"{stated} (hit rate on random weights means nothing)" if architecture_only else stated

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Replace `forward` on the instance `pipe.transformer`.

        Raises InvalidInput if something else replaced it before, and in a request that uses ControlNet or IP-Adapter.
        """

        facts: Facts = {"computed_steps": []}

        def count(call: PipelineCall) -> None:
            facts["computed_steps"] = call.computed_counts()

        calls = track_calls(pipe, undo)
        replace_forward(pipe.transformer, self, calls, undo)
        calls.on_completed(count, undo)
        return facts


_MEMORY = "first_block_cache"


@dataclass
class Remembered:
    """The state of one pass (positive or negative) of one call between steps; one row per sample."""

    first: Tensor | None = None
    """[B, output tokens, W] what the first block added to the image stream at each sample's last computed step;
    None where a schedule decides."""
    rest: Tensor | None = None
    """[B, T, W] what the remaining blocks added to the image stream then; None before the first step."""
    skips: list[int] = field(default_factory=list)
    """Skips in a row, per sample."""


def replace_forward(transformer: Any, cache: FirstBlockCache, calls: CallTracker, undo: ExitStack) -> None:
    """Give `transformer` (this instance only) the cached forward until `undo` is closed.

    Raises InvalidInput if the instance's forward was replaced before by something we do not know.
    """
    from diffusers.utils import apply_lora_scale

    own = vars(transformer)
    # The hooks of accelerate's offloading call the real forward as `_old_forward`; the cache has to be inside of them.
    slot = "_old_forward" if "_hf_hook" in own else "forward"
    if slot in own and getattr(own[slot], "__func__", None) is not type(transformer).forward:
        if group_hook(transformer) is not None:
            require_undisturbed([("The transformer", transformer)], "first_block_cache")
        raise InvalidInput(
            "Something already replaced the transformer's forward (another cache or hook); "
            "remove it, e.g. with pipe.transformer.disable_cache(), then accelerate again."
        )
    original, was_own = type(transformer).forward, slot in own
    cached = apply_lora_scale("joint_attention_kwargs")(_forward)

    @functools.wraps(original)
    def choose(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = calls.current
        if call is None:
            return original(self, *args, **kwargs)
        return cached(self, cache, call, *args, **kwargs)

    forward = MethodType(choose, transformer)

    def restore() -> None:
        # Offloading that was switched on or off meanwhile has moved our forward to the other slot.
        slots = [name for name in ("forward", "_old_forward") if own.get(name) is forward]
        if not slots:
            raise KontextError("The transformer's forward was replaced after accelerate; load the checkpoint again.")
        if slots == [slot] and not was_own:
            delattr(transformer, slot)
        else:
            setattr(transformer, slots[0], MethodType(original, transformer))

    setattr(transformer, slot, forward)
    undo.callback(restore)


def _forward(
    transformer: Any,
    cache: FirstBlockCache,
    call: PipelineCall,
    hidden_states: Tensor,
    encoder_hidden_states: Any = None,
    pooled_projections: Any = None,
    timestep: Any = None,
    img_ids: Any = None,
    txt_ids: Any = None,
    guidance: Tensor | None = None,
    joint_attention_kwargs: dict[str, Any] | None = None,
    controlnet_block_samples: Any = None,
    controlnet_single_block_samples: Any = None,
    return_dict: bool = True,
    controlnet_blocks_repeat: bool = False,
) -> Any:
    _require_supported(joint_attention_kwargs, controlnet_block_samples, controlnet_single_block_samples)
    index = call.begin_pass(pooled_projections, guidance, img_ids, txt_ids)
    remembered = call.memory.setdefault(_MEMORY, {}).setdefault(index, Remembered())

    image = transformer.x_embedder(hidden_states)
    scaled_timestep = timestep.to(image.dtype) * 1000
    if guidance is None:
        temb = transformer.time_text_embed(scaled_timestep, pooled_projections)
    else:
        temb = transformer.time_text_embed(scaled_timestep, guidance.to(image.dtype) * 1000, pooled_projections)
    text = transformer.context_embedder(encoder_hidden_states)
    rotary = transformer.pos_embed(_joined(txt_ids, img_ids))

    def run(blocks: Sequence[Any], image: Tensor, text: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        for block in blocks:
            text, image = block(
                hidden_states=image,
                encoder_hidden_states=text,
                temb=temb,
                image_rotary_emb=rotary,
            )
        return image, text

    blocks: list[Any] = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    before = image
    image, text = run(blocks[:1], image, text, temb)
    change = None if cache.schedule is not None else _change(image, before, img_ids, remembered)
    compute = _decide(cache, call, remembered, change, len(image))
    call.mark(*("full" if ran else "skipped" for ran in compute))
    image = _advance(remembered, compute, change, image, text, temb, functools.partial(run, blocks[1:]))

    output = transformer.proj_out(transformer.norm_out(image, temb))
    if not return_dict:
        return (output,)
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=output)


def _require_supported(attention_kwargs: dict[str, Any] | None, *controlnet: Any) -> None:
    unsupported = []
    if any(samples is not None for samples in controlnet):
        unsupported.append("ControlNet")
    if attention_kwargs:
        unsupported.append(f"attention arguments ({', '.join(attention_kwargs)}; IP-Adapter is one of them)")
    if unsupported:
        raise InvalidInput(f"first_block_cache does not support {' and '.join(unsupported)}; leave one of the two out.")


def _joined(txt_ids: Tensor, img_ids: Tensor) -> Tensor:
    import torch

    # Older callers pass ids with a batch dimension; every sample's are the same.
    return torch.cat([ids[0] if ids.ndim == 3 else ids for ids in (txt_ids, img_ids)])


def _change(image: Tensor, before: Tensor, img_ids: Tensor, remembered: Remembered) -> Tensor:
    """[B, output tokens, W] what the first block added to the output tokens.

    Reference tokens are left out: their input is the same at every step, so they change least, and the pipeline
    throws their output away. Counting them would halve every difference, and by how much would depend on the
    reference's size; without them a threshold means the same for an edit as for text-to-image.
    """
    if remembered.first is None:
        ids = img_ids[0] if img_ids.ndim == 3 else img_ids
        tokens = int((ids[:, 0] == 0).sum())
    else:
        tokens = remembered.first.shape[1]
    return image[:, :tokens] - before[:, :tokens]


def _decide(
    cache: FirstBlockCache, call: PipelineCall, remembered: Remembered, change: Tensor | None, batch: int
) -> list[bool]:
    """Per sample, whether the remaining blocks run."""
    import torch

    if remembered.rest is None:
        return [True] * batch
    if change is None:
        return [call.step in cache.computed_steps(call.total_steps)] * batch
    if call.step < cache.warmup_steps:
        return [True] * batch
    last = remembered.first
    assert last is not None
    drift = (change - last).abs().mean((1, 2), dtype=torch.float32) / last.abs().mean((1, 2), dtype=torch.float32)
    limit = cache.max_consecutive_skips
    return [
        # `not below`, so that a NaN is computed
        not value < cache.threshold or (limit is not None and skips >= limit)
        for value, skips in zip(drift.tolist(), remembered.skips, strict=True)
    ]


def _advance(
    remembered: Remembered,
    compute: list[bool],
    change: Tensor | None,
    image: Tensor,
    text: Tensor,
    temb: Tensor,
    run_rest: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Tensor:
    """[B, T, W] the image stream after all blocks: computed for the samples in `compute`, reused for the others.

    The text stream ends with the last block, nothing reads it afterwards, so only the image stream has a residual.
    """
    import torch

    if not remembered.skips:
        remembered.skips = [0] * len(compute)
    remembered.skips = [0 if ran else skips + 1 for ran, skips in zip(compute, remembered.skips, strict=True)]

    if all(compute):
        remembered.rest = None  # frees it while the blocks run
        after, _ = run_rest(image, text, temb)
        remembered.first, remembered.rest = change, after - image
        return after
    assert remembered.rest is not None
    if not any(compute):
        return image + remembered.rest
    rows = torch.tensor([row for row, ran in enumerate(compute) if ran], device=image.device)
    after, _ = run_rest(image[rows], text[rows], temb[rows])
    remembered.rest[rows] = after - image[rows]
    if change is not None and remembered.first is not None:
        remembered.first[rows] = change[rows]
    result = image + remembered.rest
    result[rows] = after
    return result
