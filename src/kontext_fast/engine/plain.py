"""Whether a transformer is plain: linear layers with ordinary weights, nothing wrapped around them."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Linear, Parameter

from kontext_fast.errors import InvalidInput

_DTYPES = (torch.bfloat16, torch.float32)

_LINEAR_NAMES = frozenset(
    {"x_embedder", "context_embedder", "proj_out", "proj_mlp", "proj", "linear", "to_q", "to_k", "to_v", "to_add_out"}
    | {"add_q_proj", "add_k_proj", "add_v_proj", "linear_1", "linear_2"}
)


def require_plain(transformer: Any) -> None:
    """Raise InvalidInput, saying what to do, unless the engine computes just what `transformer` would."""
    require_no_adapters(transformer)
    for name, layer in transformer.named_modules():
        if hasattr(layer, "weight") and name.split(".")[-1] in _LINEAR_NAMES and type(layer) is not Linear:
            raise InvalidInput(
                f"The engine reads plain linear layers, but {name} is a {type(layer).__name__}; "
                "load the checkpoint without quantization."
            )
        if getattr(layer, "fused_projections", False):
            raise InvalidInput(
                "The transformer's projections are fused already; call pipe.transformer.unfuse_qkv_projections() first."
            )
    _require_ordinary_parameters(transformer)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        _require_known_block(block)


def require_no_adapters(transformer: Any) -> None:
    """Raise InvalidInput if a LoRA adapter is on the transformer that is not part of its weights."""
    # Not `hasattr`: where it fails, as it nearly always does, torch takes microseconds to say so, thousands of times.
    if any("base_layer" in layer._modules for layer in transformer.modules()):
        raise InvalidInput(
            "The transformer has a LoRA adapter that is not fused into its weights; call pipe.fuse_lora() and "
            "pipe.unload_lora_weights(), then accelerate again."
        )


def _require_ordinary_parameters(transformer: Any) -> None:
    kinds = {(type(one), type(one.data), one.dtype, one.device) for one in transformer.parameters()}
    classes = {(parameter, data) for parameter, data, _, _ in kinds}
    if classes != {(Parameter, torch.Tensor)}:
        raise InvalidInput("The transformer's weights are quantized already; load the checkpoint without quantization.")
    if len(kinds) > 1:
        raise InvalidInput(
            "The transformer's weights have more than one precision or device; load the pipeline with one dtype, "
            "then move it with pipe.to(device)."
        )
    (_, _, dtype, _) = kinds.pop()
    if dtype not in _DTYPES:
        raise InvalidInput(
            f"The engine runs in bfloat16 or float32, not {str(dtype).removeprefix('torch.')}; "
            "load the pipeline with dtype=torch.bfloat16."
        )


def _require_known_block(block: Any) -> None:
    processor = type(block.attn.processor).__name__
    if processor != "FluxAttnProcessor":
        raise InvalidInput(
            f"The engine replaces the transformer's own attention, but here it is a {processor}; "
            "unload what put it there (IP-Adapter is one that does), then accelerate again."
        )
    activations = [block.act_mlp] if hasattr(block, "act_mlp") else [block.ff.net[0], block.ff_context.net[0]]
    for activation in activations:
        if getattr(activation, "approximate", None) != "tanh":
            raise InvalidInput("The engine knows the MLP of FLUX (GELU in its tanh form) only; use another preset.")
