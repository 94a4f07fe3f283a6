"""Rounding to float8: reads 2 bytes per bfloat16 number once, writes 1."""

from __future__ import annotations

import torch
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
    store_scaled,
)
from kontext_fast.engine.ops import Quantized


def quantize_rows(x: Tensor) -> Quantized:
    """Each row of `x` [B, rows, K], which may have any strides but a contiguous last dimension."""
    values, scale = quantized_like(x, x.shape[-1])
    _launch(x, None, values, scale)
    return Quantized(values, scale, x.dtype)


def quantize_beside(x: Tensor, static: Tensor, values: Tensor) -> Quantized:
    """All of `values` [B, rows, W + M] e4m3, the first W columns of which become `x` [B, rows, W] by `static` [B]."""
    scale = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
    _launch(x, static, values, scale)
    return Quantized(values, scale, x.dtype)


def _launch(x: Tensor, static: Tensor | None, values: Tensor, scale: Tensor) -> None:
    require_dense_rows(x)
    batch, rows, width = x.shape
    block = block_of(width)
    strides = x.stride(0), x.stride(1), values.shape[-1], None if static is None else static.stride(0)
    with device_of(x):
        _quantize_rows[(rows, batch)](
            x, values, scale, static, *strides, WIDTH=width, BLOCK=block, **options_for(block, accesses=2)
        )


@triton.jit
def _quantize_rows(
    x: tl.tensor,
    values: tl.tensor,
    scale: tl.tensor,
    static: tl.tensor,
    x_batch: tl.tensor,
    x_row: tl.tensor,
    values_row: tl.tensor,
    static_batch: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    columns = tl.arange(0, BLOCK)
    source = row_of(x, x_batch, x_row)
    blocks: tl.tuple = ()
    largest = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(WIDTH // BLOCK):
        block = tl.load(source + i * BLOCK + columns).to(tl.float32)
        if static is None:
            largest = larger_magnitude(largest, block)
        blocks += (block,)
    row = row_index()
    if static is None:
        store_quantized(blocks, largest, values + row * values_row, scale + row, BLOCK)
    else:
        by = tl.load(static + tl.program_id(1) * static_batch)
        store_scaled(blocks, by, values + row * values_row, scale + row, BLOCK)


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
