"""Rounding to float8: reads 2 bytes per bfloat16 number once, writes 1."""

from __future__ import annotations

from torch import Tensor

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
    store_quantized,
)
from kontext_fast.engine.ops import Quantized


def quantize_rows(x: Tensor) -> Quantized:
    """Each row of `x` [B, rows, K], which may have any strides but a contiguous last dimension."""
    require_dense_rows(x)
    batch, rows, width = x.shape
    values, scale = quantized_like(x, width)
    block = block_of(width)
    with device_of(x):
        _quantize_rows[(rows, batch)](
            x, values, scale, x.stride(0), x.stride(1), WIDTH=width, BLOCK=block, **options_for(block, accesses=2)
        )
    return Quantized(values, scale, x.dtype)


@triton.jit
def _quantize_rows(
    x: tl.tensor,
    values: tl.tensor,
    scale: tl.tensor,
    x_batch: tl.tensor,
    x_row: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    columns = tl.arange(0, BLOCK)
    source = row_of(x, x_batch, x_row)
    blocks: tl.tuple = ()
    largest = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(WIDTH // BLOCK):
        block = tl.load(source + i * BLOCK + columns).to(tl.float32)
        largest = larger_magnitude(largest, block)
        blocks += (block,)
    row = row_index()
    store_quantized(blocks, largest, values + row * WIDTH, scale + row, BLOCK)


def _example(inputs: Inputs) -> Call:
    x = inputs.stream()
    return lambda ops, quantize: [ops.prepare(x, quantize=quantize)]


KERNEL = Kernel(
    "quantize_rows",
    functions=(_quantize_rows,),
    operations=(
        Operation(
            "prepare",
            _example,
            bytes_per_row=lambda dimensions, read, written: dimensions.width * (read + written),
            per_double=1,
            quantizes={"fp8": (True,)},
        ),
    ),
)
