"""Rotation and rounding to int8 with one scale per row, of one part or of two side by side: one pass over a row."""

from __future__ import annotations

import torch
from torch import Tensor

from kontext_fast.engine.kernels.int8_linear import layer_of
from kontext_fast.engine.kernels.language import tl, triton
from kontext_fast.engine.kernels.registry import Call, Inputs, Kernel, Operation
from kontext_fast.engine.kernels.rows import (
    block_of,
    device_of,
    larger_magnitude,
    options_for,
    quantized_like,
    require_dense_rows,
    row_index,
    row_of,
    store_int8,
)
from kontext_fast.engine.ops import Quantized, rotation_group
from kontext_fast.errors import InvalidInput

_SHORT = 4
"""Blocks of a row that half as many warps hold in their registers."""


def quantize_int8(x: Tensor, *, beside: Tensor | None = None) -> Quantized:
    """Rotated rows of `x` [B, rows, W] and of `beside` [B, rows, M], if any, in this order.

    Both may have any strides but a contiguous last dimension. Raises InvalidInput if channels of both would be rotated
    together.
    """
    joined = x[..., :0] if beside is None else beside
    for tensor in (x, joined):
        require_dense_rows(tensor)
    batch, rows, _ = x.shape
    widths = x.shape[-1], joined.shape[-1]
    group = rotation_group(sum(widths))
    block = block_of(*widths)
    if group > block:
        raise InvalidInput(f"int8 cannot join rows of {widths[0]} and {widths[1]} numbers; use the preset faithful.")
    values, scale = quantized_like(x, sum(widths), torch.int8)
    with device_of(x):
        _quantize_int8[(rows, batch)](
            x,
            joined,
            values,
            scale,
            x.stride(0),
            x.stride(1),
            joined.stride(0),
            joined.stride(1),
            FIRST=widths[0],
            SECOND=widths[1],
            BLOCK=block,
            GROUP=group,
            **options_for(block, accesses=2 if sum(widths) <= _SHORT * block else 1),
        )
    return Quantized(values, scale, x.dtype)


@triton.jit
def rotated_block(x: tl.tensor, BLOCK: tl.constexpr, GROUP: tl.constexpr) -> tl.tensor:
    """`x` [BLOCK] float32 with every GROUP neighbours multiplied by the Hadamard matrix over its root."""
    HALF: tl.constexpr = GROUP // 2
    if HALF >= 1:
        x = _butterfly(x, BLOCK, 1)
    if HALF >= 2:
        x = _butterfly(x, BLOCK, 2)
    if HALF >= 4:
        x = _butterfly(x, BLOCK, 4)
    if HALF >= 8:
        x = _butterfly(x, BLOCK, 8)
    if HALF >= 16:
        x = _butterfly(x, BLOCK, 16)
    if HALF >= 32:
        x = _butterfly(x, BLOCK, 32)
    if HALF >= 64:
        x = _butterfly(x, BLOCK, 64)
    return x * (GROUP**-0.5)


@triton.jit
def _butterfly(x: tl.tensor, BLOCK: tl.constexpr, STRIDE: tl.constexpr) -> tl.tensor:
    """Sums and differences of numbers that are STRIDE apart."""
    low, high = tl.split(tl.trans(tl.reshape(x, (BLOCK // (2 * STRIDE), 2, STRIDE)), (0, 2, 1)))
    return tl.reshape(tl.trans(tl.join(low + high, low - high), (0, 2, 1)), (BLOCK,))


@triton.jit
def _quantize_int8(
    x: tl.tensor,
    beside: tl.tensor,
    values: tl.tensor,
    scale: tl.tensor,
    x_batch: tl.tensor,
    x_row: tl.tensor,
    beside_batch: tl.tensor,
    beside_row: tl.tensor,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    columns = tl.arange(0, BLOCK)
    blocks: tl.tuple = ()
    largest = tl.zeros((BLOCK,), tl.float32)
    source = row_of(x, x_batch, x_row)
    for i in tl.static_range(FIRST // BLOCK):
        block = rotated_block(tl.load(source + i * BLOCK + columns).to(tl.float32), BLOCK, GROUP)
        largest = larger_magnitude(largest, block)
        blocks += (block,)
    source = row_of(beside, beside_batch, beside_row)
    for i in tl.static_range(SECOND // BLOCK):
        block = rotated_block(tl.load(source + i * BLOCK + columns).to(tl.float32), BLOCK, GROUP)
        largest = larger_magnitude(largest, block)
        blocks += (block,)
    row = row_index()
    store_int8(blocks, largest, values + row * (FIRST + SECOND), scale + row, BLOCK)


def _example(inputs: Inputs) -> Call:
    x = inputs.stream()
    return lambda ops, quantize: [ops.prepare(x, quantize=quantize)]


def _example_after_linear(inputs: Inputs) -> Call:
    x, layer = layer_of(inputs)
    return lambda ops, quantize: [ops.linear_gelu(x, layer, quantize=quantize)]


def _example_joined(inputs: Inputs) -> Call:
    (x, layer), attended = layer_of(inputs), inputs.stream()
    return lambda ops, quantize: [ops.join_linear_gelu(lambda: attended, x, layer, quantize=quantize)]


KERNEL = Kernel(
    "quantize_int8",
    functions=(_quantize_int8,),
    operations=(
        Operation(
            "prepare",
            _example,
            bytes_per_row=lambda dimensions, read, written: dimensions.width * (read + written),
            per_double=1,
            quantizes={"int8": (True,)},
        ),
        Operation(
            "linear_gelu",
            _example_after_linear,
            bytes_per_row=lambda dimensions, read, written: dimensions.mlp_width * (read + written),
            per_double=1,
            quantizes={"int8": (True,)},
        ),
        Operation(
            "join_linear_gelu",
            _example_joined,
            bytes_per_row=lambda dimensions, read, written: (
                (dimensions.width + dimensions.mlp_width) * (read + written)
            ),
            per_single=1,
            for_outputs=1,
            quantizes={"int8": (True,)},
        ),
    ),
)
