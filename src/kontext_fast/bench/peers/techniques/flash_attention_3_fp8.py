"""`flash_attention_3_fp8`: attention in float8 through FlashAttention 3, with inputs cast without a scale."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from kontext_fast.bench.peers.block_tracer import blocks_of
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.patching import set_attribute

if TYPE_CHECKING:
    from torch import Tensor

    from kontext_fast.pipeline.device import Machine

_INTERFACE = "flash_attn_interface"
_OPERATION = "kontext_fast_peers::flash_attention_3_fp8"


class FlashAttention3Fp8(Optimization):
    """Query, key and value are cast to e4m3 without scaling, so values beyond 448 saturate."""

    name: ClassVar[str] = "flash_attention_3_fp8"
    summary: ClassVar[str] = "attention in float8 through FlashAttention 3"
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.WEIGHTS

    def hardware_refusal(self, machine: Machine) -> str | None:
        """Its kernels need compute capability 9.0, and they are built from source, since no package index has them."""
        if machine.device != "cuda" or machine.capability != (9, 0):
            return f"{self.name} needs an NVIDIA GPU of compute capability 9.0; run it on one"
        if find_spec(_INTERFACE) is None:
            return f"{self.name} needs {_INTERFACE}, which is built from the source of FlashAttention (hopper/)"
        return None

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Give every attention of the transformer a processor that calls it."""
        for block in blocks_of(pipe.transformer):
            set_attribute(block.attn, "processor", Processor(), undo)
        return {}


class Processor:
    """FluxAttnProcessor of diffusers 0.42 with another attention function."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        import torch
        from diffusers.models.embeddings import apply_rotary_emb
        from diffusers.models.transformers.transformer_flux import _get_qkv_projections

        def heads(part: Any) -> Any:
            return None if part is None else part.unflatten(-1, (-1, attn.head_dim))

        projections = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        query, key, value, text_query, text_key, text_value = map(heads, projections)
        query, key = attn.norm_q(query), attn.norm_k(key)
        if attn.added_kv_proj_dim is not None:
            query = torch.cat([attn.norm_added_q(text_query), query], dim=1)
            key = torch.cat([attn.norm_added_k(text_key), key], dim=1)
            value = torch.cat([text_value, value], dim=1)
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)

        output = _operation()(query, key, value).flatten(2, 3)

        if encoder_hidden_states is None:
            return output
        text_tokens = encoder_hidden_states.shape[1]
        text, image = output[:, :text_tokens], output[:, text_tokens:]
        return attn.to_out[1](attn.to_out[0](image.contiguous())), attn.to_add_out(text.contiguous())


@cache
def _operation() -> Any:
    """The kernel as an operator of torch, opaque to compiled code. Inputs and output are [B, T, heads, D]."""
    import torch

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        from flash_attn_interface import flash_attn_func

        result = flash_attn_func(*(tensor.to(torch.float8_e4m3fn) for tensor in (query, key, value)))
        # Some versions also return the log-sum-exp.
        output: Tensor = result[0] if isinstance(result, tuple) else result
        return output.to(query.dtype).contiguous()

    schema = "(Tensor query, Tensor key, Tensor value) -> Tensor"
    operation = torch.library.custom_op(_OPERATION, attend, mutates_args=(), schema=schema)
    operation.register_fake(lambda query, key, value: torch.empty_like(query).contiguous())
    return operation
