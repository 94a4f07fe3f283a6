"""The operations of a step: the interface that kernels implement, and its portable implementation.

Shapes: B samples, `rows` tokens of one stream, S tokens in all, W the width, H heads of D channels, M the width of
the MLP. Activations are contiguous [B, rows, ...]; `x` and `stream` may be views into larger buffers, with any strides
but a contiguous last dimension. "The dtype" is that of the checkpoint: bfloat16 or float32.

Float8 is e4m3, with one scale per row (one token of activations, one output channel of weights) or, for attention, per
head: `scale = absmax / 448`, so that the largest magnitude becomes 448, the largest number of e4m3.

`PortableOps` rounds where diffusers rounds. A fused kernel may keep float32 between the operations it joins and round
once to the dtype; what it then quantizes is that rounded value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from kontext_fast.engine.attention.base import AttentionKernel
from kontext_fast.engine.attention.pytorch import NATIVE

KernelKind = Literal["portable", "emulated", "fused"]
"""Implementations: plain PyTorch, plain PyTorch that rounds as fp8 hardware does, fused kernels."""

LAYER_NORM_EPS = 1e-6

E4M3_MAX = 448.0
SMALLEST_ABSMAX = 1e-12
"""Lower bound of the magnitude that a row is scaled by, so that a row of zeros stays one."""


@dataclass(frozen=True)
class Quantized:
    """`values * scale` approximates what was quantized."""

    values: Tensor
    """[..., K] float8_e4m3fn, contiguous."""
    scale: Tensor
    """float32, with 1 for every dimension whose numbers share a scale: [..., 1] for rows."""
    dtype: torch.dtype
    """Of the tensor that was quantized; products with it have this dtype."""

    def dequantized(self) -> Tensor:
        """[..., K] float32."""
        return self.values.float() * self.scale


Activations = Tensor | Quantized
"""Input of a linear layer: quantized if, and only if, the layer's weight is."""


@dataclass(frozen=True)
class Linear:
    """y = x @ weight.T + bias."""

    weight: Tensor | Quantized
    """[out, in]."""
    bias: Tensor | None
    """[out] in the dtype."""

    @property
    def quantized(self) -> bool:
        return isinstance(self.weight, Quantized)


@dataclass(frozen=True)
class QKNorm:
    """RMS norm over the channels of each head."""

    query: Tensor
    """[D] in the dtype."""
    key: Tensor
    eps: float


@dataclass(frozen=True)
class Rope:
    """Rotation of each pair of neighbouring channels, by token."""

    cos: Tensor
    """[rows, D / 2] float32."""
    sin: Tensor

    def rows(self, start: int, stop: int) -> Rope:
        return Rope(self.cos[start:stop], self.sin[start:stop])


@dataclass(frozen=True)
class JointQKV:
    """Query, key and value of all tokens, in the layout that attention reads: [B, S, H, D] each, in the dtype."""

    query: Tensor
    key: Tensor
    value: Tensor


class Ops(Protocol):
    """Every operation of a step. Implementations hold no state that depends on a size."""

    attention_kernel: AttentionKernel

    @property
    def kernel(self) -> KernelKind: ...

    def precompile_calls(
        self, transformer: Any, device: torch.device, *, quantize: bool
    ) -> Sequence[Callable[[], object]]:
        """Calls that compile what a step of any size needs on `device`; they may run concurrently.

        `transformer` is diffusers', `quantize` whether the large products are in fp8."""

    def norm_modulate(self, x: Tensor, shift: Tensor, scale: Tensor, *, quantize: bool) -> Activations:
        """[B, rows, W] layer norm of `x` without weights, times (1 + `scale`), plus `shift` (both [B, W])."""

    def write_qkv(self, qkv: Tensor, norm: QKNorm, rope: Rope, joint: JointQKV, offset: int) -> None:
        """Normalize and rotate query and key of `qkv`, [B, rows, 3 W] with any row stride; write all three, value
        as it is, to the rows of `joint` that begin at `offset`. `rope` has one row per row of `qkv`."""

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, rows, W] of `query` [B, rows, H, D] over `key` and `value` [B, S, H, D]."""

    def prepare(self, x: Tensor, *, quantize: bool) -> Activations:
        """`x` [B, rows, K], quantized if the next linear layer is."""

    def gelu(self, x: Tensor, *, quantize: bool) -> Activations:
        """[B, rows, M] GELU (tanh form) of `x`."""

    def join_gelu(self, attended: Tensor, hidden: Tensor, *, quantize: bool) -> Activations:
        """[B, rows, W + M]: `attended` [B, rows, W], then the GELU of `hidden` [B, rows, M], written in one pass;
        `hidden` has any row stride. Quantized with one scale for the whole row."""

    def linear(self, x: Activations, layer: Linear) -> Tensor:
        """[B, rows, out] in the dtype. Of quantized operands: summed in float32, scaled, bias added, rounded once."""

    def add_gated(self, stream: Tensor, gate: Tensor, update: Tensor) -> None:
        """Add `gate` [B, W] times `update` [B, rows, W] to `stream` [B, rows, W] in place."""


class PortableOps:
    """Every operation in plain PyTorch: the implementation on a CPU and the reference of the kernels' tests."""

    def __init__(self, attention: AttentionKernel = NATIVE, *, emulates_fp8: bool = False) -> None:
        self.attention_kernel = attention
        self._emulates_fp8 = emulates_fp8

    @property
    def kernel(self) -> KernelKind:
        return "emulated" if self._emulates_fp8 else "portable"

    def precompile_calls(
        self, transformer: Any, device: torch.device, *, quantize: bool
    ) -> Sequence[Callable[[], object]]:
        return ()

    def norm_modulate(self, x: Tensor, shift: Tensor, scale: Tensor, *, quantize: bool) -> Activations:
        normed = functional.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)
        return self.prepare(normed * (1 + scale[:, None]) + shift[:, None], quantize=quantize)

    def write_qkv(self, qkv: Tensor, norm: QKNorm, rope: Rope, joint: JointQKV, offset: int) -> None:
        heads, head_dim = joint.query.shape[-2:]
        query, key, value = qkv.view(*qkv.shape[:-1], 3, heads, head_dim).unbind(-3)
        rows = slice(offset, offset + qkv.shape[1])
        joint.query[:, rows] = _rotated(functional.rms_norm(query, (head_dim,), norm.query, norm.eps), rope)
        joint.key[:, rows] = _rotated(functional.rms_norm(key, (head_dim,), norm.key, norm.eps), rope)
        joint.value[:, rows] = value

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.attention_kernel.run(query, key, value).flatten(2)

    def prepare(self, x: Tensor, *, quantize: bool) -> Activations:
        return _quantized(x, (-1,)) if quantize else x

    def gelu(self, x: Tensor, *, quantize: bool) -> Activations:
        return self.prepare(functional.gelu(x, approximate="tanh"), quantize=quantize)

    def join_gelu(self, attended: Tensor, hidden: Tensor, *, quantize: bool) -> Activations:
        width = attended.shape[-1]
        joined = attended.new_empty(*attended.shape[:-1], width + hidden.shape[-1])
        joined[..., :width] = attended
        joined[..., width:] = functional.gelu(hidden, approximate="tanh")
        return self.prepare(joined, quantize=quantize)

    def linear(self, x: Activations, layer: Linear) -> Tensor:
        if isinstance(x, Quantized) and isinstance(layer.weight, Quantized):
            product = functional.linear(x.values.float(), layer.weight.values.float())
            product = product * x.scale * layer.weight.scale.squeeze(-1)
            return (product if layer.bias is None else product + layer.bias).to(x.dtype)
        if isinstance(x, Quantized) or isinstance(layer.weight, Quantized):
            raise TypeError("activations and weight must both be quantized, or neither")
        return functional.linear(x, layer.weight, layer.bias)

    def add_gated(self, stream: Tensor, gate: Tensor, update: Tensor) -> None:
        stream += gate[:, None] * update


def _rotated(x: Tensor, rope: Rope) -> Tensor:
    """`x` [B, rows, H, D] with every pair of channels turned by its token's angle, computed in float32."""
    cos, sin = rope.cos[None, :, None], rope.sin[None, :, None]
    real, imaginary = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((real * cos - imaginary * sin, imaginary * cos + real * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def quantize(x: Tensor) -> Quantized:
    """Round each row of `x`, [..., K] in any floating dtype. A row that holds a NaN or an infinity becomes all NaN."""
    return _quantized(x, (-1,))


def quantize_heads(x: Tensor) -> Quantized:
    """Round each head of each sample of `x`, [B, S, H, D], over all its tokens, the only scale that attention takes."""
    return _quantized(x, (1, 3))


def _quantized(x: Tensor, shared: tuple[int, ...]) -> Quantized:
    wide = x.float()
    scale = wide.abs().amax(shared, keepdim=True).clamp(min=SMALLEST_ABSMAX) / E4M3_MAX
    # A quotient may round to just above 448; up to 464 the conversion rounds that down to 448 again.
    return Quantized((wide / scale).to(torch.float8_e4m3fn).contiguous(), scale, x.dtype)
