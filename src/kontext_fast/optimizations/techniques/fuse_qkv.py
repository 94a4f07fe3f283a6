"""`fuse_qkv`: computes query, key and value of every attention with one matrix product instead of three.

The separate weights become views into the fused ones: nothing is held twice, every Parameter stays the same object,
and saving the model writes the same as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import PipelineCall, track_calls
from kontext_fast.optimizations.patching import group_hook, require_undisturbed, set_attribute

_IMAGE = ("to_q", "to_k", "to_v")
_TEXT = ("add_q_proj", "add_k_proj", "add_v_proj")


class FuseQKV(Optimization):
    """One projection per attention. Each output element is the same dot product, but a wider matrix may be tiled
    differently by the kernel library, so equal bits are not guaranteed."""

    name: ClassVar[str] = "fuse_qkv"
    summary: ClassVar[str] = "query, key and value of each attention as one matrix product"
    effect: ClassVar[Effect] = Effect.NUMERIC
    phase: ClassVar[Phase] = Phase.WEIGHTS

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Fuse every attention of `pipe.transformer`.

        Raises InvalidInput if one is fused already or its projections are not plain linear layers (LoRA adapters,
        quantized weights), and, at the next request, if they stopped being so.
        """
        attentions = list(_attentions(pipe.transformer))
        for attention in attentions:
            _require_plain(attention)
        groups = [hook.group for module in pipe.transformer.modules() if (hook := group_hook(module)) is not None]
        if any(group.stream is not None for group in groups):
            raise InvalidInput(
                "Group offloading with a stream knows no weights that are joined later, as fuse_qkv joins them; use "
                "accelerate(pipe, 'faithful'), or enable it without use_stream."
            )
        fused: list[tuple[Any, list[Any]]] = []
        for attention in attentions:
            fused.append(_fuse(attention, "to_qkv", _IMAGE, undo))
            if attention.added_kv_proj_dim is not None:
                fused.append(_fuse(attention, "to_added_qkv", _TEXT, undo))
            set_attribute(attention, "fused_projections", True, undo)

        dtype = pipe.transformer.dtype

        def check(call: PipelineCall) -> None:
            for attention in attentions:
                _require_plain(attention, fused=True)
            if not all(layer.weight.dtype == dtype and _joined(layer, separate) for layer, separate in fused):
                raise InvalidInput(
                    "The transformer was moved or converted after fuse_qkv was applied; revert the acceleration, "
                    "move the pipeline, then accelerate again."
                )

        track_calls(pipe, undo).on_begin(check, undo)
        return {"projections": len(fused)}


def _attentions(transformer: Any) -> Iterator[Any]:
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        yield block.attn


def _require_plain(attention: Any, *, fused: bool = False) -> None:
    from torch import Tensor
    from torch.nn import Linear

    if attention.fused_projections and not fused:
        raise InvalidInput(
            "The transformer's projections are fused already; call pipe.transformer.unfuse_qkv_projections() first."
        )
    for name in (*_IMAGE, *(_TEXT if attention.added_kv_proj_dim is not None else ())):
        layer = getattr(attention, name)
        if hasattr(layer, "base_layer"):
            raise InvalidInput(
                f"fuse_qkv would bypass the LoRA adapter on {name}; revert the acceleration and accelerate "
                "again, which merges it, or leave fuse_qkv out."
            )
        if type(layer) is not Linear and "parametrizations" not in layer._modules:
            raise InvalidInput(
                f"fuse_qkv needs plain linear layers, but {name} is a {type(layer).__name__}; leave it out."
            )
        if (kind := type(layer.weight.data)) is not Tensor:
            raise InvalidInput(
                f"fuse_qkv needs plain weights, but that of {name} is a {kind.__name__}; leave it out (of classic, the "
                "preset first_block_cache is left)."
            )
        require_undisturbed([(name, layer)], "fuse_qkv")


def _fuse(attention: Any, name: str, parts: tuple[str, ...], undo: ExitStack) -> tuple[Any, list[Any]]:
    """Give `attention` the projection `name` made of `parts`, whose parameters become views into it."""
    import torch

    from kontext_fast.engine.weights import fuse_parameters

    layers = [getattr(attention, part) for part in parts]
    fused = torch.nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), device="meta")
    for kind in ("weight", "bias"):
        separate = [getattr(layer, kind) for layer in layers]
        delattr(fused, kind)
        if separate[0] is None:
            fused.register_parameter(kind, None)
            continue
        # A buffer that is not persistent: it follows the module, but no saved model contains it.
        fused.register_buffer(kind, fuse_parameters(separate, undo), persistent=False)
    undo.callback(attention._modules.pop, name, None)
    setattr(attention, name, fused)
    return fused, layers


def _joined(projection: Any, separate: list[Any]) -> bool:
    """Whether the weights of `separate` are views into those of `projection`, or become so as they have the same bits.

    Offloading moves each tensor on its own, so that both are held; a LoRA that was merged since has changed some.
    """
    import torch

    if _is_view(separate[0].weight, projection.weight):
        return True
    for kind in ("weight", "bias"):
        whole, parts = getattr(projection, kind), [getattr(layer, kind) for layer in separate]
        if whole is None:
            continue
        pairs = list(zip(parts, whole.split_with_sizes([len(part) for part in parts]), strict=True))
        if not all(part.device == view.device and part.dtype == view.dtype for part, view in pairs):
            return False
        if not all(torch.equal(part.data, view) for part, view in pairs):
            return False
        for part, view in pairs:
            part.data = view
    return True


def _is_view(part: Any, whole: Any) -> bool:
    return bool(part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr())
