"""How kernels walk over rows: one program per row, in blocks that divide it, so that no lane is masked off."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from kontext_fast.engine import ops
from kontext_fast.engine.kernels.language import tl, triton
from kontext_fast.errors import KontextError

_WIDEST = 1024
"""Of a block."""
_ONE_ACCESS = 8
"""Numbers of bfloat16 that a thread reads at once, 16 bytes."""


def block_of(*widths: int) -> int:
    """The longest block, a power of two, that divides every one of `widths`."""
    block = _WIDEST
    while any(width % block for width in widths):
        block //= 2
    return block


def options_for(block: int, *, accesses: int = 1) -> dict[str, int | bool]:
    """How to launch a program whose threads each read a block of bfloat16 in so many accesses of 16 bytes.

    Few warps spend fewer instructions on agreeing about a row, but hold more of it in each one's registers.
    """
    # Triton 3.10 will no longer join multiplications and additions unless told to.
    return {"num_warps": max(1, block // (32 * _ONE_ACCESS * accesses)), "enable_fp_fusion": True}


def require_dense_rows(x: Tensor) -> None:
    """Raise KontextError if the last dimension of `x` is not contiguous."""
    if x.stride(-1) != 1:
        raise KontextError("A fused kernel was given rows that are not contiguous; use a preset without the engine.")


def device_of(x: Tensor) -> AbstractContextManager[None]:
    """In which kernels run on the device of `x`: Triton launches on the current one, whatever it is given."""
    return torch.cuda.device_of(x)  # type: ignore[no-untyped-call]


def quantized_like(x: Tensor, width: int, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """Where [B, rows, `width`] values of `dtype` and their [B, rows, 1] float32 scales go, both not yet written."""
    shape = x.shape[:-1]
    values = torch.empty(*shape, width, dtype=dtype, device=x.device)
    return values, torch.empty(*shape, 1, dtype=torch.float32, device=x.device)


@triton.jit
def row_of(pointer: tl.tensor, batch_stride: tl.tensor, row_stride: tl.tensor) -> tl.tensor:
    """Where this program's row begins. In 64 bits: a batch of large images has more than 2^31 numbers."""
    return pointer + tl.program_id(1).to(tl.int64) * batch_stride + tl.program_id(0).to(tl.int64) * row_stride


@triton.jit
def row_index() -> tl.tensor:
    """Of this program's row in a contiguous [B, rows, ...]."""
    return tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)


E4M3_MAX = tl.constexpr(ops.E4M3_MAX)
INT8_MAX = tl.constexpr(ops.INT8_MAX)
SMALLEST_ABSMAX = tl.constexpr(ops.SMALLEST_ABSMAX)
_ROUNDS = tl.constexpr(1.5 * 2**23)
"""Added to a small number and taken off again it leaves the nearest integer, ties to even: float32 has no more bits."""


@triton.jit
def larger_magnitude(largest: tl.tensor, block: tl.tensor) -> tl.tensor:
    """[BLOCK] float32, for each lane of a row the largest magnitude so far; NaN once a NaN was seen."""
    return tl.maximum(largest, tl.abs(block), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _row_scale(largest: tl.tensor, scale: tl.tensor, LARGEST: tl.constexpr) -> tl.tensor:
    """Write the `scale` of a row to where its largest magnitude becomes LARGEST, and return the reciprocal.

    `largest` [BLOCK] comes from `larger_magnitude`.
    """
    # As integers, magnitudes are ordered as they are as numbers, and NaN is the largest: one warp instruction each.
    bits = tl.max(largest.to(tl.int32, bitcast=True), 0)
    absmax = bits.to(tl.float32, bitcast=True)
    absmax = tl.maximum(absmax, SMALLEST_ABSMAX, propagate_nan=tl.PropagateNan.ALL)
    row_scale = tl.div_rn(absmax, LARGEST)
    tl.store(scale, row_scale)
    # One division per row; dividing every number would cost more than reading it.
    return tl.div_rn(1.0, row_scale)


@triton.jit
def store_quantized(
    blocks: tl.tuple, largest: tl.tensor, values: tl.tensor, scale: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """Write the `blocks` of a row, float32 [BLOCK] each, as e4m3 `values` and one `scale`."""
    inverse = _row_scale(largest, scale, E4M3_MAX)
    columns = tl.arange(0, BLOCK)
    for i in tl.static_range(len(blocks)):
        tl.store(values + i * BLOCK + columns, (blocks[i] * inverse).to(tl.float8e4nv))


@triton.jit
def store_scaled(blocks: tl.tuple, by: tl.tensor, values: tl.tensor, scale: tl.tensor, BLOCK: tl.constexpr) -> None:
    """Write the `blocks` of a row, float32 [BLOCK] each, as e4m3 `values` of the scale `by`, which goes to `scale`."""
    tl.store(scale, by)
    inverse = tl.div_rn(1.0, by)
    columns = tl.arange(0, BLOCK)
    for i in tl.static_range(len(blocks)):
        tl.store(values + i * BLOCK + columns, (blocks[i] * inverse).to(tl.float8e4nv))


@triton.jit
def store_int8(blocks: tl.tuple, largest: tl.tensor, values: tl.tensor, scale: tl.tensor, BLOCK: tl.constexpr) -> None:
    """Write the `blocks` of a row, float32 [BLOCK] each, as int8 `values` and one `scale`."""
    inverse = _row_scale(largest, scale, INT8_MAX)
    columns = tl.arange(0, BLOCK)
    for i in tl.static_range(len(blocks)):
        tl.store(values + i * BLOCK + columns, (blocks[i] * inverse + _ROUNDS - _ROUNDS).to(tl.int8))


@triton.jit
def store_halves(target: tl.tensor, block: tl.tensor, BLOCK: tl.constexpr) -> None:
    """Write a `block` of bfloat16 whose row is also written in numbers of one byte.

    Each thread holds 16 numbers, which is one access of those and two of these. As one store, it would have Triton give
    each thread 8, and sums over the row another order than in kernels that write nothing else.
    """
    parts = tl.trans(tl.reshape(block, (BLOCK // 16, 2, 8)), (0, 2, 1))
    first, second = tl.split(parts)
    places = tl.arange(0, BLOCK // 16)[:, None] * 16 + tl.arange(0, 8)[None, :]
    tl.store(target + places, first)
    tl.store(target + places + 8, second)
