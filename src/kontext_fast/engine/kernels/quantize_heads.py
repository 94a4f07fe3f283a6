"""Rounding attention's inputs to float8: reads 2 bytes per bfloat16 number twice, writes 1."""

from __future__ import annotations

import torch
from torch import Tensor

from kontext_fast.engine import ops as portable
from kontext_fast.engine.kernels.language import tl, triton
from kontext_fast.engine.kernels.registry import Call, Inputs, Kernel, Operation
from kontext_fast.engine.kernels.rows import E4M3_MAX, SMALLEST_ABSMAX, device_of, options_for
from kontext_fast.engine.ops import Quantized
from kontext_fast.errors import KontextError

_TOKENS = 32
"""Of one head that a program reads."""


def quantize_heads(x: Tensor) -> Quantized:
    """As `kontext_fast.engine.ops.quantize_heads`, of `x` [B, S, H, D] whose heads lie side by side, D a power of two.

    Raises KontextError if they do not.
    """
    batch, tokens, heads, channels = x.shape
    if x.stride()[2:] != (channels, 1) or channels & (channels - 1):
        raise KontextError("Attention in float8 was given buffers in another layout; use attention=default.")
    # As integers: magnitudes are ordered as they are as numbers, and NaN is the largest.
    absmax = torch.zeros(batch, 1, heads, 1, dtype=torch.int32, device=x.device)
    scale = torch.empty(batch, 1, heads, 1, dtype=torch.float32, device=x.device)
    values = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    grid = triton.cdiv(tokens, _TOKENS), heads, batch
    named = {"TOKENS": _TOKENS, "CHANNELS": channels, **options_for(_TOKENS * channels, accesses=4)}
    with device_of(x):
        _absmax_heads[grid](x, absmax, tokens, x.stride(0), x.stride(1), **named)
        _quantize_heads[grid](x, absmax, values, scale, tokens, x.stride(0), x.stride(1), **named)
    return Quantized(values, scale, x.dtype)


@triton.jit
def _token_index(TOKENS: tl.constexpr) -> tl.tensor:
    """[TOKENS, 1] of this program. In 64 bits: a batch of large images has more than 2^31 numbers."""
    return tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]


@triton.jit
def _head_index() -> tl.tensor:
    return tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)


@triton.jit
def _load(
    x: tl.tensor,
    token: tl.tensor,
    tokens: tl.tensor,
    x_batch: tl.tensor,
    x_row: tl.tensor,
    CHANNELS: tl.constexpr,
) -> tl.tensor:
    """[TOKENS, CHANNELS] float32 of this program's head, zeros after the last token."""
    head = x + tl.program_id(2).to(tl.int64) * x_batch + tl.program_id(1) * CHANNELS
    return tl.load(head + token * x_row + tl.arange(0, CHANNELS)[None, :], token < tokens, 0).to(tl.float32)


@triton.jit(do_not_specialize=["tokens"])
def _absmax_heads(
    x: tl.tensor,
    absmax: tl.tensor,
    tokens: tl.tensor,
    x_batch: tl.tensor,
    x_row: tl.tensor,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    numbers = _load(x, _token_index(TOKENS), tokens, x_batch, x_row, CHANNELS)
    bits = tl.abs(numbers).to(tl.int32, bitcast=True)
    tl.atomic_max(absmax + _head_index(), tl.max(tl.max(bits, 1), 0))


@triton.jit(do_not_specialize=["tokens"])
def _quantize_heads(
    x: tl.tensor,
    absmax: tl.tensor,
    values: tl.tensor,
    scale: tl.tensor,
    tokens: tl.tensor,
    x_batch: tl.tensor,
    x_row: tl.tensor,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    token = _token_index(TOKENS)
    numbers = _load(x, token, tokens, x_batch, x_row, CHANNELS)
    largest = tl.load(absmax + _head_index()).to(tl.float32, bitcast=True)
    largest = tl.maximum(largest, SMALLEST_ABSMAX, propagate_nan=tl.PropagateNan.ALL)
    head_scale = tl.div_rn(largest, E4M3_MAX)
    # One division; dividing every number would cost more than reading it.
    inverse = tl.div_rn(1.0, head_scale)
    if tl.program_id(0) == 0:
        tl.store(scale + _head_index(), head_scale)
    row = (tl.program_id(2).to(tl.int64) * tokens + token) * tl.num_programs(1) + tl.program_id(1)
    targets = values + row * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    tl.store(targets, (numbers * inverse).to(tl.float8e4nv), token < tokens)


def _example(inputs: Inputs) -> Call:
    tokens = inputs.stream()
    x = tokens.view(*tokens.shape[:-1], inputs.dimensions.heads, inputs.dimensions.head_dim)
    return lambda ops, _quantize: [quantize_heads(x) if ops.kernel == "fused" else portable.quantize_heads(x)]


KERNEL = Kernel(
    "quantize_heads",
    functions=(_absmax_heads, _quantize_heads),
    operations=(
        Operation(
            "quantize_heads",
            _example,
            bytes_per_row=lambda dimensions, read, written: dimensions.width * (2 * read + written),
            # A step has it only where its kernel of attention launches it.
            bf16=(True,),
        ),
    ),
)
