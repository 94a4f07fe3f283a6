"""Rounding one row, held in registers, to float8 (e4m3) with one scale, as `kontext_fast.engine.ops` does."""

from __future__ import annotations

from kontext_fast.engine import ops
from kontext_fast.engine.kernels.language import tl, triton

E4M3_MAX = tl.constexpr(ops.E4M3_MAX)
SMALLEST_ABSMAX = tl.constexpr(ops.SMALLEST_ABSMAX)


@triton.jit
def larger_magnitude(largest: tl.tensor, block: tl.tensor) -> tl.tensor:
    """[BLOCK] float32, for each lane of a row the largest magnitude so far; NaN once a NaN was seen."""
    return tl.maximum(largest, tl.abs(block), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def store_quantized(
    blocks: tl.tuple, largest: tl.tensor, values: tl.tensor, scale: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """Write the `blocks` of a row, float32 [BLOCK] each, as e4m3 `values` and one `scale`.

    `largest` [BLOCK] comes from `larger_magnitude`.
    """
    # As integers, magnitudes are ordered as they are as numbers, and NaN is the largest: one warp instruction each.
    bits = tl.max(largest.to(tl.int32, bitcast=True), 0)
    absmax = bits.to(tl.float32, bitcast=True)
    absmax = tl.maximum(absmax, SMALLEST_ABSMAX, propagate_nan=tl.PropagateNan.ALL)
    row_scale = tl.div_rn(absmax, E4M3_MAX)
    # One division per row; dividing every number would cost more than reading it.
    inverse = tl.div_rn(1.0, row_scale)
    tl.store(scale, row_scale)
    columns = tl.arange(0, BLOCK)
    for i in tl.static_range(len(blocks)):
        tl.store(values + i * BLOCK + columns, (blocks[i] * inverse).to(tl.float8e4nv))
