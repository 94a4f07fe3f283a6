"""The operations of a step: the interface that kernels implement, and its portable implementation.

Shapes: B samples, `rows` tokens of one stream, S tokens in all, W the width, H heads of D channels, M the width of
the MLP. Activations are contiguous [B, rows, ...]; `x` and `stream` may be views into larger buffers, with any strides
but a contiguous last dimension. "The dtype" is that of the checkpoint: bfloat16 or float32.

Float8 is e4m3, with one scale per row (one token of activations, one output channel of weights): `scale = absmax /
448`, so that the largest magnitude becomes 448, the largest number of e4m3. Its error comes from its three bits of
mantissa, whatever the scale. Int8 has `scale = absmax / 127` and a third of that error, but where a row has one large
number, the others get few of its steps. So rows are rotated before (QuaRot, Ashkboos et al., arXiv 2404.00456):
groups of up to 128 channels are multiplied by a Hadamard matrix, which spreads large numbers over their group, and
the same rotation of a layer's weights cancels it.

`PortableOps` rounds where diffusers rounds. A fused kernel may keep float32 between the operations it joins and round
once to the dtype; what it then quantizes is that rounded value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional

from kontext_fast.engine.attention.base import AttentionKernel
from kontext_fast.engine.attention.pytorch import NATIVE

KernelKind = Literal["portable", "emulated", "fused"]
"""Implementations: plain PyTorch, plain PyTorch that rounds as fp8 hardware does, fused kernels."""

Precision = Literal["bf16", "fp8", "int8"]
"""Of the matrix products inside of the blocks. `bf16`: as the checkpoint was loaded, nothing is quantized."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

LAYER_NORM_EPS = 1e-6

E4M3_MAX, INT8_MAX = 448.0, 127.0
SMALLEST_ABSMAX = 1e-12
"""Lower bound of the magnitude that a row is scaled by, so that a row of zeros stays one."""


@dataclass(frozen=True)
class Quantized:
    """`values * scale` approximates what was quantized."""

    values: Tensor
    """[..., K] float8_e4m3fn, or int8 of rotated rows; contiguous."""
    scale: Tensor
    """float32, with 1 for every dimension whose numbers share a scale: [..., 1] for rows."""
    dtype: torch.dtype
    """Of the tensor that was quantized; products with it have this dtype."""

    def dequantized(self) -> Tensor:
        """[..., K] float32."""
        numbers = self.values.float() * self.scale
        return rotated(numbers) if self.values.dtype == torch.int8 else numbers


Activations = Tensor | Quantized
"""Input of a linear layer: quantized if, and only if, the layer's weight is."""


def rows_of(x: Activations, rows: slice) -> Activations:
    """`rows` of `x` [B, S, K], contiguous; scales are copied, since products may want them to begin at 16 bytes."""
    if isinstance(x, Quantized):
        return Quantized(x.values[:, rows].contiguous(), x.scale[:, rows].clone(), x.dtype)
    return x[:, rows].contiguous()


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

    def on(self, device: torch.device) -> Linear:
        """The same on `device`; itself where it is there. For layers that are not quantized."""
        if isinstance(self.weight, Quantized) or self.weight.device == device:
            return self
        return Linear(self.weight.to(device), None if self.bias is None else self.bias.to(device))


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
    """Query, key and value of all tokens, in the layout that attention reads: [B, S, H, D] each, in the dtype or, for a
    quantized kernel of attention, in e4m3."""

    query: Tensor
    key: Tensor
    value: Tensor
    scales: Tensor | None = None
    """[3, B] float32, contiguous: what numbers in e4m3 are multiplied by, of query, key and value."""
    first_head: int = 0
    """Of those that are written: the buffers may be for some heads only."""

    def only(self, rows: slice) -> JointQKV:
        """The same with the queries of `rows` alone, for `Ops.attention`."""
        return replace(self, query=self.query[:, rows])


Attend = Callable[..., Tensor]
"""`Ops.attention` of some joint buffers: takes `into`, or nothing."""


class Ops(Protocol):
    """Every operation of a step. Implementations hold no state that depends on a size."""

    attention_kernel: AttentionKernel

    @property
    def kernel(self) -> KernelKind: ...

    def precompile_calls(
        self, transformer: Any, device: torch.device, *, quantize: bool
    ) -> Sequence[Callable[[], object]]:
        """Calls that compile what a step of any size needs on `device`; they may run concurrently.

        `transformer` is diffusers', `quantize` whether the large products are quantized."""

    def has_static_scales(self, device: torch.device) -> bool:
        """Whether MLPs on `device` take scales that are known before: `static` [3, B] float32, powers of two, of the
        MLP's input, of what the GELU gives (in a single block beside attention's output), and the inverse of that. The
        layer's weight has one scale then."""

    def norm_modulate(
        self, x: Tensor, shift: Tensor, scale: Tensor, *, quantize: bool, static: Tensor | None = None
    ) -> Activations:
        """[B, rows, W] layer norm of `x` without weights, times (1 + `scale`), plus `shift` (both [B, W])."""

    def write_qkv(self, qkv: Tensor, norm: QKNorm, rope: Rope, joint: JointQKV, offset: int) -> None:
        """Normalize and rotate query and key of `qkv`, [B, rows, 3 W] with any row stride; write the heads of `joint`
        of all three, value as it is, to its rows that begin at `offset`. `rope` has one row per row of `qkv`."""

    def write_all_qkv(self, qkv: Tensor, norm: QKNorm, rope: Rope, joint: JointQKV) -> JointQKV:
        """`write_qkv` of all tokens at once, [B, S, 3 W] and contiguous. Returns what attention shall read: its value
        may be a view of `qkv`."""

    def attention(self, joint: JointQKV, into: Tensor | None = None) -> Tensor:
        """[B, rows, W] of the queries of `joint` over its keys and values; `into`, where that is given."""

    def prepare(self, x: Tensor, *, quantize: bool) -> Activations:
        """`x` [B, rows, K], quantized if the next linear layer is."""

    def gelu(self, x: Tensor, *, quantize: bool) -> Activations:
        """[B, rows, M] GELU (tanh form) of `x`."""

    def join_gelu(self, attended: Tensor, hidden: Tensor, *, quantize: bool) -> Activations:
        """[B, rows, W + M]: `attended` [B, rows, W], then the GELU of `hidden` [B, rows, M], written in one pass;
        `hidden` has any row stride. Quantized with one scale for the whole row."""

    def linear(self, x: Activations, layer: Linear) -> Tensor:
        """[B, rows, out] in the dtype. Of quantized operands: summed in float32 (int8: in int32, exactly), scaled, bias
        added, rounded once."""

    def linear_gelu(
        self, x: Activations, layer: Linear, *, quantize: bool, static: Tensor | None = None
    ) -> Activations:
        """`gelu` of `linear`. With `static`, it is rounded to e4m3 from float32, and not to the dtype before."""

    def join_linear_gelu(
        self, attend: Attend, x: Activations, layer: Linear, *, quantize: bool, static: Tensor | None = None
    ) -> Activations:
        """`join_gelu` of what `attend` gives, and `linear`, which is computed first: what attention reads may still be
        on its way from another GPU. `static` as in `linear_gelu`, for both."""

    def add_gated(self, stream: Tensor, gate: Tensor, update: Tensor) -> None:
        """Add `gate` [B, W] times `update` [B, rows, W] to `stream` [B, rows, W] in place."""

    def add_norm_modulate(
        self,
        stream: Tensor,
        gate: Tensor,
        update: Tensor,
        shift: Tensor,
        scale: Tensor,
        *,
        quantize: bool,
        static: Tensor | None = None,
    ) -> Activations:
        """`add_gated`, then `norm_modulate` of what `stream` has become, with the bits of one after the other."""


class PortableOps:
    """Every operation in plain PyTorch: the implementation on a CPU and the reference of the kernels' tests."""

    def __init__(self, attention: AttentionKernel = NATIVE, precision: Precision = "bf16") -> None:
        self.attention_kernel = attention
        self._precision = precision

    @property
    def kernel(self) -> KernelKind:
        return "emulated" if self._precision == "fp8" else "portable"

    def precompile_calls(
        self, transformer: Any, device: torch.device, *, quantize: bool
    ) -> Sequence[Callable[[], object]]:
        return ()

    def has_static_scales(self, device: torch.device) -> bool:
        return self._precision == "fp8"

    def norm_modulate(
        self, x: Tensor, shift: Tensor, scale: Tensor, *, quantize: bool, static: Tensor | None = None
    ) -> Activations:
        normed = functional.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)
        modulated = normed * (1 + scale[:, None]) + shift[:, None]
        return (
            self.prepare(modulated, quantize=quantize) if static is None else quantize_by(modulated, static[0], x.dtype)
        )

    def write_qkv(self, qkv: Tensor, norm: QKNorm, rope: Rope, joint: JointQKV, offset: int) -> None:
        heads, head_dim = joint.query.shape[-2:]
        own = slice(joint.first_head, joint.first_head + heads)
        query, key, value = qkv.view(*qkv.shape[:-1], 3, -1, head_dim)[..., own, :].unbind(-3)
        rows = slice(offset, offset + qkv.shape[1])
        rotated = (
            _rotated(functional.rms_norm(query, (head_dim,), norm.query, norm.eps), rope),
            _rotated(functional.rms_norm(key, (head_dim,), norm.key, norm.eps), rope),
        )
        for index, (target, numbers) in enumerate(
            zip((joint.query, joint.key, joint.value), (*rotated, value), strict=True)
        ):
            if joint.scales is not None:
                numbers = (numbers.float() / joint.scales[index][:, None, None, None]).to(target.dtype)
            target[:, rows] = numbers

    def write_all_qkv(self, qkv: Tensor, norm: QKNorm, rope: Rope, joint: JointQKV) -> JointQKV:
        self.write_qkv(qkv, norm, rope, joint, 0)
        return joint

    def attention(self, joint: JointQKV, into: Tensor | None = None) -> Tensor:
        return attend(self.attention_kernel, joint, into)

    def prepare(self, x: Tensor, *, quantize: bool) -> Activations:
        if not quantize:
            return x
        return quantize_int8(x) if self._precision == "int8" else _quantized(x, (-1,))

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
            return _product(x, layer.weight, layer.bias).to(x.dtype)
        if isinstance(x, Quantized) or isinstance(layer.weight, Quantized):
            raise TypeError("activations and weight must both be quantized, or neither")
        return functional.linear(x, layer.weight, layer.bias)

    def linear_gelu(
        self, x: Activations, layer: Linear, *, quantize: bool, static: Tensor | None = None
    ) -> Activations:
        if static is None:
            return self.gelu(self.linear(x, layer), quantize=quantize)
        return quantize_by(_activated(x, layer), static[1], x.dtype)

    def join_linear_gelu(
        self, attend: Attend, x: Activations, layer: Linear, *, quantize: bool, static: Tensor | None = None
    ) -> Activations:
        if static is None:
            hidden = self.linear(x, layer)
            return self.join_gelu(attend(), hidden, quantize=quantize)
        activated = _activated(x, layer)
        return quantize_by(torch.cat((attend().float(), activated), dim=-1), static[1], x.dtype)

    def add_gated(self, stream: Tensor, gate: Tensor, update: Tensor) -> None:
        stream += gate[:, None] * update

    def add_norm_modulate(
        self,
        stream: Tensor,
        gate: Tensor,
        update: Tensor,
        shift: Tensor,
        scale: Tensor,
        *,
        quantize: bool,
        static: Tensor | None = None,
    ) -> Activations:
        self.add_gated(stream, gate, update)
        return self.norm_modulate(stream, shift, scale, quantize=quantize, static=static)


def _product(x: Quantized, weight: Quantized, bias: Tensor | None) -> Tensor:
    """[..., out] float32; sums of int8 products are exact in float64 alone."""
    wide = torch.float64 if x.values.dtype == torch.int8 else torch.float32
    product = functional.linear(x.values.to(wide), weight.values.to(wide)).float() * x.scale * weight.scale.squeeze(-1)
    return product if bias is None else product + bias


def _activated(x: Activations, layer: Linear) -> Tensor:
    """[..., out] float32, the GELU of a product of quantized operands."""
    if not (isinstance(x, Quantized) and isinstance(layer.weight, Quantized)):
        raise TypeError("static scales are of products of quantized operands")
    return functional.gelu(_product(x, layer.weight, layer.bias), approximate="tanh")


def attend(kernel: AttentionKernel, joint: JointQKV, into: Tensor | None = None) -> Tensor:
    """[B, rows, W] by `kernel`; `into`, where that is given."""
    inputs = [joint.query, joint.key, joint.value, *(() if joint.scales is None else (joint.scales,))]
    if into is None:
        return kernel.run(*inputs).flatten(2)
    if kernel.run_into is None:
        return into.copy_(kernel.run(*inputs).flatten(2))
    kernel.run_into(into.view(joint.query.shape), *inputs)
    return into


def _rotated(x: Tensor, rope: Rope) -> Tensor:
    """`x` [B, rows, H, D] with every pair of channels turned by its token's angle, computed in float32."""
    cos, sin = rope.cos[None, :, None], rope.sin[None, :, None]
    real, imaginary = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((real * cos - imaginary * sin, imaginary * cos + real * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def quantize(x: Tensor) -> Quantized:
    """Round each row of `x`, [..., K] in any floating dtype. A row that holds a NaN or an infinity becomes all NaN."""
    return _quantized(x, (-1,))


def quantize_whole(x: Tensor) -> Quantized:
    """Round the matrix `x` [out, K] with one scale, [1, 1]."""
    return _quantized(x, (-2, -1))


def quantize_by(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Quantized:
    """Round `x` [B, rows, K], which stands for numbers in `dtype`, with the `scale` [B] of each sample."""
    of_rows = scales_of_rows(scale, x)
    return Quantized((x.float() / of_rows).to(torch.float8_e4m3fn), of_rows, dtype)


def scales_of_rows(scale: Tensor, x: Tensor) -> Tensor:
    """[B, rows, 1] of `x` [B, rows, K] whose samples have the scales `scale` [B]."""
    return scale[:, None, None].expand(*x.shape[:-1], 1).contiguous()


def quantize_int8(x: Tensor) -> Quantized:
    """Rotate and round each row of `x`, [..., K] in any floating dtype. The scale of a row that holds a NaN is NaN."""
    turned = rotated(x.float())
    scale = turned.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_ABSMAX) / INT8_MAX
    return Quantized((turned / scale).nan_to_num().round().to(torch.int8).contiguous(), scale, x.dtype)


def rotated(x: Tensor) -> Tensor:
    """`x` [..., K] float32 with every group of channels multiplied by a Hadamard matrix, which is its own inverse."""
    group = rotation_group(x.shape[-1])
    groups = x.reshape(*x.shape[:-1], -1, group)
    return torch.matmul(groups, hadamard(group, x.device)).flatten(-2)


def rotation_group(width: int) -> int:
    """Channels that are rotated together in a row of `width`: the largest power of two up to 128 that divides it."""
    return min(128, width & -width)


@cache
def hadamard(size: int, device: torch.device) -> Tensor:
    """[size, size] float32, orthogonal and symmetric; `size` is a power of two."""
    matrix: Tensor = torch.ones(1, 1, device=device)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], device=device), matrix)
    return torch.mul(matrix, size**-0.5)


def quantize_joint(query: Tensor, key: Tensor, value: Tensor) -> JointQKV:
    """Round all three, [B, S, H, D] each, with one scale per sample: attention takes none for tokens, and e4m3 is as
    exact over 2^15 as at its largest number."""
    parts = [_quantized(part, (1, 2, 3)) for part in (query, key, value)]
    scales = torch.stack([part.scale.flatten() for part in parts])
    return JointQKV(parts[0].values, parts[1].values, parts[2].values, scales)


def _quantized(x: Tensor, shared: tuple[int, ...]) -> Quantized:
    wide = x.float()
    scale = wide.abs().amax(shared, keepdim=True).clamp(min=SMALLEST_ABSMAX) / E4M3_MAX
    # A quotient may round to just above 448; up to 464 the conversion rounds that down to 448 again.
    return Quantized((wide / scale).to(torch.float8_e4m3fn).contiguous(), scale, x.dtype)
