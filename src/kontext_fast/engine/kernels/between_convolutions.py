"""Between the VAE's convolutions, beside the norms: biases, residuals, images of twice the side, and a softmax.

PyTorch adds the bias of a convolution whose channels are innermost in a kernel that moves a number at a time, then the
residual in a second one, then divides by one in a third. Here both are added in one pass, rounded as often as there.
All but the softmax is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kontext_fast.engine.kernels.language import tl, triton
from kontext_fast.engine.kernels.registry import Kernel
from kontext_fast.engine.kernels.rows import device_of

_TILE = 4096
"""Numbers that a program reads at once."""
_LONGEST = 2048
"""Of a row's part that a softmax reads at once."""


def add_bias(x: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
    """Add `bias` [C] and then `residual`, of the shape of `x`, to `x` [B, C, height, width] in place, and return it.

    Rounds after each addition. `x` is in channels_last; a residual in another layout is copied.
    """
    batch, channels, height, width = x.shape
    if not x.is_contiguous(memory_format=torch.channels_last):
        x.add_(bias[:, None, None])
        return x if residual is None else x.add_(residual)
    other = x if residual is None else residual.contiguous(memory_format=torch.channels_last)
    rows, block = batch * height * width, triton.next_power_of_2(channels)
    tile = max(1, _TILE // block)
    with device_of(x):
        _add_bias[(triton.cdiv(rows, tile),)](
            x, bias, other, rows,
            CHANNELS=channels, BLOCK=block, TILE=tile, HAS_RESIDUAL=residual is not None, num_warps=4,
        )  # fmt: skip
    return x


def double_sides(x: Tensor) -> Tensor:
    """[B, C, 2 height, 2 width] in channels_last: every pixel of `x` [B, C, height, width] four times.

    `x` is copied if it is in another layout.
    """
    batch, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty(
        batch, channels, 2 * height, 2 * width, dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    rows, block = batch * height * width, triton.next_power_of_2(channels)
    tile = max(1, _TILE // block)
    with device_of(x):
        _double_sides[(triton.cdiv(rows, tile),)](
            x, out, rows, width, CHANNELS=channels, BLOCK=block, TILE=tile, num_warps=4
        )
    return out


def softmax(scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """[B, rows, N] in `dtype`: the softmax of `scale` times `scores` [B, rows, N] float32, contiguous; rounds once."""
    out = torch.empty(scores.shape, dtype=dtype, device=scores.device)
    batch, rows, numbers = scores.shape
    with device_of(scores):
        _softmax[(batch * rows,)](scores, out, numbers, scale, BLOCK=_LONGEST, num_warps=8)
    return out


@triton.jit(do_not_specialize=["rows"])
def _add_bias(
    x: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    rows: tl.tensor,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
) -> None:
    lines = tl.program_id(0) * TILE + tl.arange(0, TILE)
    columns = tl.arange(0, BLOCK)
    mask = (lines < rows)[:, None] & (columns < CHANNELS)[None, :]
    place = lines.to(tl.int64)[:, None] * CHANNELS + columns[None, :]
    added = tl.load(bias + columns, mask=columns < CHANNELS, other=0.0).to(tl.float32)[None, :]
    value = (tl.load(x + place, mask=mask, other=0.0).to(tl.float32) + added).to(x.dtype.element_ty)
    if HAS_RESIDUAL:
        before = tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
        value = (before + value.to(tl.float32)).to(x.dtype.element_ty)
    tl.store(x + place, value, mask=mask)


@triton.jit(do_not_specialize=["rows", "width"])
def _double_sides(
    x: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    lines = tl.program_id(0) * TILE + tl.arange(0, TILE)
    columns = tl.arange(0, BLOCK)
    mask = (lines < rows)[:, None] & (columns < CHANNELS)[None, :]
    block = tl.load(x + lines.to(tl.int64)[:, None] * CHANNELS + columns[None, :], mask=mask, other=0.0)
    # Whole lines of the image above each other are twice as many and twice as long.
    first = (lines // width).to(tl.int64) * (4 * width) + 2 * (lines % width)
    place = first[:, None] * CHANNELS + columns[None, :]
    below = 2 * width.to(tl.int64) * CHANNELS
    tl.store(out + place, block, mask=mask)
    tl.store(out + place + CHANNELS, block, mask=mask)
    tl.store(out + place + below, block, mask=mask)
    tl.store(out + place + below + CHANNELS, block, mask=mask)


@triton.jit(do_not_specialize=["scale"])
def _softmax(scores: tl.tensor, out: tl.tensor, numbers: tl.tensor, scale: tl.tensor, BLOCK: tl.constexpr) -> None:
    """Of one row, which is read twice."""
    start = tl.program_id(0).to(tl.int64) * numbers
    # A finite number, so that lanes beyond a short row add nothing.
    largest = tl.full((BLOCK,), -3e38, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    first = 0
    while first < numbers:
        place = first + tl.arange(0, BLOCK)
        block = tl.load(scores + start + place, mask=place < numbers, other=float("-inf")) * scale
        highest = tl.maximum(largest, block)
        total = total * tl.exp(largest - highest) + tl.exp(block - highest)
        largest = highest
        first += BLOCK
    top = tl.max(largest, 0)
    inverse = 1.0 / tl.sum(total * tl.exp(largest - top), 0)
    first = 0
    while first < numbers:
        place = first + tl.arange(0, BLOCK)
        block = tl.load(scores + start + place, mask=place < numbers, other=0.0) * scale
        tl.store(out + start + place, (tl.exp(block - top) * inverse).to(out.dtype.element_ty), mask=place < numbers)
        first += BLOCK


KERNEL = Kernel("between_convolutions", functions=(_add_bias, _double_sides, _softmax))
