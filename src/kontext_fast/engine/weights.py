"""The weights of a diffusers `FluxTransformer2DModel` as the engine reads them: few wide matrices, maybe in fp8.

Query, key and value of a stream are one matrix; in a single block so are query, key, value and the MLP's first layer,
since all four read the same tokens. The single block's last layer already reads attention and MLP side by side.

Quantized, where asked, are the matrices inside of the blocks: more than 99 % of a step's work in linear layers. What
stays in the checkpoint's dtype, and why:
- the embedders of image and text: every block reads what they make, so their error would be in all of them, for
  0.01 % of the work;
- the embedding of time, guidance and pooled text and all modulations: they scale and gate every channel of every
  token, and run once per request for all steps;
- the output layer: its result is the velocity itself, so no later layer can even out its error; 0.001 % of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kontext_fast.engine.dimensions import Dimensions
from kontext_fast.engine.fp8 import Quantized, quantize
from kontext_fast.engine.ops import Linear, QKNorm
from kontext_fast.engine.source_weights import SourceWeights, require_plain

Precision = Literal["bf16", "fp8"]
"""`bf16`: as the checkpoint was loaded, nothing is quantized; `fp8`: e4m3 inside of the blocks."""

Quantizer = Callable[[str, Sequence[Tensor]], Quantized]
"""Gives the quantized matrix called by a name that is made of these, [out, in] each, one below the other."""


@dataclass(frozen=True)
class StreamWeights:
    """One stream (image or text) of a double block."""

    modulation: Linear
    """[6 W, W]: shift, scale and gate of attention, then of the MLP."""
    qkv: Linear
    norm: QKNorm
    out: Linear
    mlp_in: Linear
    mlp_out: Linear


@dataclass(frozen=True)
class DoubleWeights:
    """A block in which image and text tokens have weights of their own."""

    text: StreamWeights
    image: StreamWeights


@dataclass(frozen=True)
class SingleWeights:
    """A block in which all tokens have the same weights, and attention and MLP run side by side."""

    modulation: Linear
    """[3 W, W]: shift, scale and gate."""
    qkv_mlp: Linear
    """[3 W + M, W]."""
    norm: QKNorm
    out: Linear
    """[W, W + M], attention first."""


@dataclass(frozen=True)
class EngineWeights:
    """All weights of a transformer."""

    dimensions: Dimensions
    precision: Precision
    dtype: torch.dtype
    device: torch.device
    embed_image: Linear
    embed_text: Linear
    embed_conditions: Any
    """The transformer's own module: (timestep, [guidance,] pooled text) -> [N, W]."""
    embed_positions: Any
    """The transformer's own module: ids [S, 3] -> cos and sin, [S, D] each."""
    doubles: tuple[DoubleWeights, ...]
    singles: tuple[SingleWeights, ...]
    final_modulation: Linear
    """[2 W, W]: scale, then shift."""
    output: Linear
    sources: SourceWeights
    """The parameters all this was taken from."""
    quantized: Mapping[str, Quantized]
    """Every quantized matrix by name; empty in bf16."""


def take_weights(
    transformer: Any,
    precision: Precision,
    undo: ExitStack,
    *,
    device: torch.device | None = None,
    quantizer: Quantizer | None = None,
) -> EngineWeights:
    """Read the weights of `transformer`, holding nothing twice on its device; `undo` gives it back as it was.

    What is fused without quantizing becomes the memory that the transformer's own parameters look into. What is
    quantized replaces the original on the device, which waits in host memory (on a CPU it stays where it is).
    `device` is where the engine computes, if the transformer is elsewhere: its matrices are brought there one at a
    time, quantized there, and what is read as it is stays there.
    `quantizer` may supply matrices that were quantized before.
    Raises InvalidInput if the transformer is not plain: LoRA adapters that are not fused, quantized layers, other
    attention processors, float16.
    """
    require_plain(transformer)
    sources = SourceWeights(transformer, undo, device)
    taker = _Taker(sources, precision, quantizer or _quantized)
    final = transformer.norm_out
    first = transformer.x_embedder.weight
    weights = EngineWeights(
        dimensions=Dimensions.of(transformer),
        precision=precision,
        dtype=first.dtype,
        device=sources.device,
        embed_image=taker.plain(transformer.x_embedder),
        embed_text=taker.plain(transformer.context_embedder),
        embed_conditions=taker.module(transformer.time_text_embed),
        embed_positions=transformer.pos_embed,
        doubles=tuple(taker.double(f"double.{i}", block) for i, block in enumerate(transformer.transformer_blocks)),
        singles=tuple(
            taker.single(f"single.{i}", block) for i, block in enumerate(transformer.single_transformer_blocks)
        ),
        final_modulation=taker.plain(final.linear),
        output=taker.plain(transformer.proj_out),
        sources=sources,
        quantized=taker.quantized,
    )
    sources.seal()
    return weights


def _quantized(_name: str, parts: Sequence[Tensor]) -> Quantized:
    # Part by part: rows have scales of their own, so this equals quantizing the whole, in less memory.
    rows = [quantize(part) for part in parts]
    return Quantized(torch.cat([row.values for row in rows]), torch.cat([row.scale for row in rows]), rows[0].dtype)


class _Taker:
    """Takes one layer after the other."""

    def __init__(self, sources: SourceWeights, precision: Precision, quantizer: Quantizer) -> None:
        self._sources = sources
        self._precision = precision
        self._quantizer = quantizer
        self.quantized: dict[str, Quantized] = {}

    def plain(self, layer: Any) -> Linear:
        """A layer that is never quantized."""
        return Linear(
            self._sources.fuse([layer.weight]), None if layer.bias is None else self._sources.fuse([layer.bias])
        )

    def module(self, layers: Any) -> Any:
        """A part of the transformer that the engine calls as it is."""
        for parameter in layers.parameters():
            self._sources.fuse([parameter])
        return layers

    def norm(self, query: Any, key: Any) -> QKNorm:
        return QKNorm(self._sources.fuse([query.weight]), self._sources.fuse([key.weight]), float(query.eps))

    def dense(self, name: str, *layers: Any) -> Linear:
        """`layers`, which read the same input, as one; quantized where that is asked for."""
        biases = [layer.bias for layer in layers]
        bias = None if biases[0] is None else self._sources.fuse(biases)
        weights = [layer.weight for layer in layers]
        if self._precision == "bf16":
            return Linear(self._sources.fuse(weights), bias)
        quantized = self._quantizer(name, [weight.data.to(self._sources.device) for weight in weights])
        for weight in weights:
            self._sources.replaced(weight)
        self.quantized[name] = quantized
        return Linear(quantized, bias)

    def double(self, name: str, block: Any) -> DoubleWeights:
        attention = block.attn
        return DoubleWeights(
            text=StreamWeights(
                modulation=self.plain(block.norm1_context.linear),
                qkv=self.dense(f"{name}.text.qkv", attention.add_q_proj, attention.add_k_proj, attention.add_v_proj),
                norm=self.norm(attention.norm_added_q, attention.norm_added_k),
                out=self.dense(f"{name}.text.out", attention.to_add_out),
                mlp_in=self.dense(f"{name}.text.mlp_in", block.ff_context.net[0].proj),
                mlp_out=self.dense(f"{name}.text.mlp_out", block.ff_context.net[2]),
            ),
            image=StreamWeights(
                modulation=self.plain(block.norm1.linear),
                qkv=self.dense(f"{name}.image.qkv", attention.to_q, attention.to_k, attention.to_v),
                norm=self.norm(attention.norm_q, attention.norm_k),
                out=self.dense(f"{name}.image.out", attention.to_out[0]),
                mlp_in=self.dense(f"{name}.image.mlp_in", block.ff.net[0].proj),
                mlp_out=self.dense(f"{name}.image.mlp_out", block.ff.net[2]),
            ),
        )

    def single(self, name: str, block: Any) -> SingleWeights:
        attention = block.attn
        return SingleWeights(
            modulation=self.plain(block.norm.linear),
            qkv_mlp=self.dense(f"{name}.qkv_mlp", attention.to_q, attention.to_k, attention.to_v, block.proj_mlp),
            norm=self.norm(attention.norm_q, attention.norm_k),
            out=self.dense(f"{name}.out", block.proj_out),
        )
