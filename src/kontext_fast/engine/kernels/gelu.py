"""GELU (tanh form), alone or beside the attention's output, and rounding to float8 of the whole in one pass over a row.

Reads each number once and writes it once: attention and MLP are never put side by side beforehand.
"""

from __future__ import annotations

import math

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
)
from kontext_fast.engine.ops import Quantized

# gelu(x) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3): one exponential and one reciprocal.
_OF_X = tl.constexpr(-2 * math.log2(math.e) * math.sqrt(2 / math.pi))
_OF_CUBE = tl.constexpr(-2 * math.log2(math.e) * math.sqrt(2 / math.pi) * 0.044715)


def gelu(hidden: Tensor, *, beside: Tensor | None = None, quantize: bool) -> Tensor | Quantized:
    """[B, rows, W + M]: `beside` [B, rows, W] as it is (nothing, if None), then the GELU of `hidden` [B, rows, M].

    Both may have any strides but a contiguous last dimension.
    """
    copied = hidden[..., :0] if beside is None else beside
    for tensor in (hidden, copied):
        require_dense_rows(tensor)
    batch, rows, _ = hidden.shape
    widths = copied.shape[-1], hidden.shape[-1]
    block = block_of(*widths)
    layout = {"COPIED": widths[0], "ACTIVATED": widths[1], "BLOCK": block, **options_for(block)}
    strides = copied.stride(0), copied.stride(1), hidden.stride(0), hidden.stride(1)
    with device_of(hidden):
        if quantize:
            values, scale = quantized_like(hidden, sum(widths))
            _gelu_quantize[(rows, batch)](copied, hidden, values, scale, *strides, **layout)
            return Quantized(values, scale, hidden.dtype)
        out = torch.empty(batch, rows, sum(widths), dtype=hidden.dtype, device=hidden.device)
        _gelu[(rows, batch, sum(widths) // block)](copied, hidden, out, *strides, **layout)
        return out


@triton.jit
def activated(x: tl.tensor) -> tl.tensor:
    # The square of a reciprocal root is a reciprocal; a division would be five instructions.
    root = tl.rsqrt(1.0 + tl.exp2(x * (_OF_X + _OF_CUBE * (x * x))))
    return x * root * root


@triton.jit
def _gelu_quantize(
    copied: tl.tensor,
    hidden: tl.tensor,
    values: tl.tensor,
    scale: tl.tensor,
    copied_batch: tl.tensor,
    copied_row: tl.tensor,
    hidden_batch: tl.tensor,
    hidden_row: tl.tensor,
    COPIED: tl.constexpr,
    ACTIVATED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    columns = tl.arange(0, BLOCK)
    blocks: tl.tuple = ()
    largest = tl.zeros((BLOCK,), tl.float32)
    source = row_of(copied, copied_batch, copied_row)
    for i in tl.static_range(COPIED // BLOCK):
        block = tl.load(source + i * BLOCK + columns).to(tl.float32)
        largest = larger_magnitude(largest, block)
        blocks += (block,)
    source = row_of(hidden, hidden_batch, hidden_row)
    for i in tl.static_range(ACTIVATED // BLOCK):
        block = activated(tl.load(source + i * BLOCK + columns).to(tl.float32))
        largest = larger_magnitude(largest, block)
        blocks += (block,)
    row = row_index()
    store_quantized(blocks, largest, values + row * (COPIED + ACTIVATED), scale + row, BLOCK)


@triton.jit
def _gelu(
    copied: tl.tensor,
    hidden: tl.tensor,
    out: tl.tensor,
    copied_batch: tl.tensor,
    copied_row: tl.tensor,
    hidden_batch: tl.tensor,
    hidden_row: tl.tensor,
    COPIED: tl.constexpr,
    ACTIVATED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    start = tl.program_id(2) * BLOCK
    columns = tl.arange(0, BLOCK)
    target = out + row_index() * (COPIED + ACTIVATED) + start + columns
    if start < COPIED:
        tl.store(target, tl.load(row_of(copied, copied_batch, copied_row) + start + columns))
    else:
        block = tl.load(row_of(hidden, hidden_batch, hidden_row) + start - COPIED + columns).to(tl.float32)
        tl.store(target, activated(block).to(out.dtype.element_ty))


def _example_alone(inputs: Inputs) -> Call:
    hidden = inputs.stream(inputs.dimensions.mlp_width)
    return lambda ops, quantize: [ops.gelu(hidden, quantize=quantize)]


def _example_beside(inputs: Inputs) -> Call:
    qkv_width, mlp_width = 3 * inputs.dimensions.width, inputs.dimensions.mlp_width
    attended, hidden = inputs.stream(), inputs.stream(qkv_width + mlp_width)[..., qkv_width:]
    return lambda ops, quantize: [ops.join_gelu(attended, hidden, quantize=quantize)]


KERNEL = Kernel(
    "gelu",
    functions=(_gelu, _gelu_quantize),
    # In no step that is counted: where a product can, it activates what it writes.
    operations=(
        Operation("gelu", _example_alone, quantizes={"fp8": (True,)}),
        Operation("join_gelu", _example_beside, quantizes={"bf16": (False,), "fp8": (True,)}),
    ),
)
