"""Products of int8 matrices with one scale per row and per column, in one kernel for Hopper's matrix units.

It is persistent: as many programs as the GPU has multiprocessors walk over the tiles, and the copy engine fetches the
next tiles of both operands meanwhile. Sums are int32 and so exact. The GELU after the first layer of an MLP is applied
while a tile is in registers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from kontext_fast.engine.kernels.gelu import activated
from kontext_fast.engine.kernels.language import tl, triton
from kontext_fast.engine.kernels.registry import Call, Inputs, Kernel, Operation
from kontext_fast.engine.kernels.rows import device_of
from kontext_fast.engine.ops import Linear, Quantized, quantize_int8
from kontext_fast.errors import InvalidInput

_ROWS, _COLUMNS, _SHARED = 256, 128, 128
"""Of a tile of the result, and of what is summed at a time. On an H100 no other was faster at the shapes of FLUX."""
_TOGETHER = 8
"""Rows of tiles that are walked column by column, so that what they read stays in the cache."""
_MULTIPLE = 16


def int8_linear(x: Quantized, weight: Quantized, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """[..., out] bfloat16 of `x` [..., K] and `weight` [out, K], both contiguous; `bias` is [out] bfloat16.

    With `gelu` the GELU of it, in the tanh form. Raises InvalidInput if K or out is no multiple of 16, or for another
    dtype than bfloat16.
    """
    out, shared = weight.values.shape
    if out % _MULTIPLE or shared % _MULTIPLE:
        raise InvalidInput(
            f"int8 needs layers whose widths are multiples of {_MULTIPLE}, this one is {shared} to {out}; "
            "use the preset faithful."
        )
    if x.dtype != torch.bfloat16:
        raise InvalidInput("int8 on a GPU returns bfloat16; load the pipeline with dtype=torch.bfloat16.")
    rows = x.values.view(-1, shared)
    result = torch.empty(len(rows), out, dtype=x.dtype, device=rows.device)
    programs = min(_programs(rows.device), triton.cdiv(len(rows), _ROWS) * triton.cdiv(out, _COLUMNS))
    with device_of(rows):
        _int8_linear[(programs,)](
            _tiles(rows, _ROWS, _SHARED),
            _tiles(weight.values, _COLUMNS, _SHARED),
            _tiles(result, _ROWS, _COLUMNS),
            x.scale,
            weight.scale,
            bias,
            len(rows),
            out,
            shared,
            programs,
            ROWS=_ROWS,
            COLUMNS=_COLUMNS,
            SHARED=_SHARED,
            TOGETHER=_TOGETHER,
            GELU=gelu,
            num_warps=8,
            num_stages=3,
        )
    return result.view(*x.values.shape[:-1], out)


def _tiles(matrix: Tensor, rows: int, columns: int) -> Any:
    """What the copy engine needs to know of a matrix; what a tile has beyond it is zero, or not written."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(matrix, [rows, columns])


@cache
def _programs(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@triton.jit(do_not_specialize=["rows", "columns", "shared", "programs"])
def _int8_linear(
    x: tl.tensor,
    weight: tl.tensor,
    result: tl.tensor,
    row_scales: tl.tensor,
    column_scales: tl.tensor,
    bias: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    shared: tl.tensor,
    programs: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHARED: tl.constexpr,
    TOGETHER: tl.constexpr,
    GELU: tl.constexpr,
) -> None:
    row_tiles, column_tiles = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    for tile in tl.range(tl.program_id(0), row_tiles * column_tiles, programs, flatten=True):
        first = tile // (TOGETHER * column_tiles) * TOGETHER
        together = tl.minimum(row_tiles - first, TOGETHER)
        within = tile % (TOGETHER * column_tiles)
        row, column = (first + within % together) * ROWS, within // together * COLUMNS
        sums = tl.zeros((ROWS, COLUMNS), tl.int32)
        for start in tl.range(0, shared, SHARED):
            sums = tl.dot(x.load([row, start]), weight.load([column, start]).T, sums, out_dtype=tl.int32)
        row_index, column_index = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
        inside = column_index < columns
        row_scale = tl.load(row_scales + row_index, row_index < rows, 0.0)[:, None]
        column_scale = tl.load(column_scales + column_index, inside, 0.0)[None, :]
        numbers = sums.to(tl.float32) * row_scale * column_scale
        if bias is not None:
            numbers += tl.load(bias + column_index, inside, 0.0).to(tl.float32)[None, :]
        if GELU:
            numbers = activated(numbers)
        result.store([row, column], numbers.to(result.dtype))


def layer_of(inputs: Inputs) -> tuple[Quantized, Linear]:
    """An input of a layer, and the layer, both in int8."""
    width, out = inputs.dimensions.width, inputs.dimensions.mlp_width
    weight = quantize_int8(inputs.draw(out, width))
    return quantize_int8(inputs.draw(inputs.batch, inputs.rows, width)), Linear(weight, inputs.draw(out))


def _example(inputs: Inputs) -> Call:
    x, layer = layer_of(inputs)
    return lambda ops, quantize: [ops.linear(x, layer)]


KERNEL = Kernel(
    "int8_linear",
    functions=(_int8_linear,),
    operations=(
        Operation(
            "linear",
            _example,
            per_double=1,
            per_single=1,
            quantizes={"int8": (False,)},
        ),
    ),
    is_product=True,
)
