"""Group norm and SiLU of an image whose channels are innermost: reads it twice, writes it once, changes no layout.

PyTorch's group norm on a GPU wants channels outermost and gives them so; between convolutions that want them innermost
each norm then costs two transpositions beside its own passes and that of SiLU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kontext_fast.engine.kernels.language import tl, triton
from kontext_fast.engine.kernels.registry import Kernel
from kontext_fast.engine.kernels.rows import device_of

_TILE = 4096
"""Numbers that a program reads at once."""
_TILES = 8
"""That a program walks over."""
_COMBINED = 1024


def group_norm_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """[B, C, height, width] in channels_last: SiLU of the group norm of `x`, which is copied if in another layout.

    `weight` and `bias` are [C]. Sums in float32, rounds once.
    """
    batch, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x)
    rows, block = height * width, triton.next_power_of_2(channels)
    tile = max(1, _TILE // block)
    per_program = tile * _TILES
    programs = triton.cdiv(rows, per_program)
    means, squares = torch.empty(2, batch, programs, channels, dtype=torch.float32, device=x.device).unbind()
    factor, centre = torch.empty(2, batch, channels, dtype=torch.float32, device=x.device).unbind()
    layout = {"CHANNELS": channels, "BLOCK": block, "TILE": tile, "TILES": _TILES, "num_warps": 4}
    with device_of(x):
        _moments[(programs, batch)](x, means, squares, rows, **layout)
        _combine[(groups, batch)](
            means, squares, weight, factor, centre, rows, programs, eps,
            CHANNELS=channels, GROUP=channels // groups, PER_PROGRAM=per_program, BLOCK=_COMBINED, num_warps=4,
        )  # fmt: skip
        _apply[(programs, batch)](x, factor, centre, bias, out, rows, **layout)
    return out


@triton.jit(do_not_specialize=["rows"])
def _moments(
    x: tl.tensor,
    means: tl.tensor,
    squares: tl.tensor,
    rows: tl.tensor,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
) -> None:
    """Of some rows, by channel: their mean, and the sum of squares about it."""
    first = tl.program_id(0) * TILE * TILES
    columns = tl.arange(0, BLOCK)
    inside = columns < CHANNELS
    source = x + (tl.program_id(1).to(tl.int64) * rows + first) * CHANNELS + columns
    # Summed about a number near the mean, so that nothing cancels where a channel is far from zero.
    pivot = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    totals = tl.zeros((TILE, BLOCK), tl.float32)
    abouts = tl.zeros((TILE, BLOCK), tl.float32)
    for i in range(TILES):
        lines = i * TILE + tl.arange(0, TILE)
        mask = (first + lines < rows)[:, None] & inside[None, :]
        block = tl.load(source[None, :] + lines[:, None] * CHANNELS, mask=mask, other=0.0).to(tl.float32)
        apart = tl.where(mask, block - pivot[None, :], 0.0)
        totals += apart
        abouts += apart * apart
    # Lines are summed once, at the end: at every turn threads would wait for each other.
    total, about = tl.sum(totals, 0), tl.sum(abouts, 0)
    count = tl.minimum(rows - first, TILE * TILES).to(tl.float32)
    target = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * CHANNELS + columns
    tl.store(means + target, pivot + total / count, mask=inside)
    tl.store(squares + target, about - total * (total / count), mask=inside)


@triton.jit(do_not_specialize=["rows", "programs"])
def _combine(
    means: tl.tensor,
    squares: tl.tensor,
    weight: tl.tensor,
    factor: tl.tensor,
    centre: tl.tensor,
    rows: tl.tensor,
    programs: tl.tensor,
    eps: tl.tensor,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Of one group: its mean, and what each of its channels is to be multiplied with about it."""
    channel = tl.program_id(0) * GROUP
    source = tl.program_id(1) * programs * CHANNELS + channel
    everything = programs * GROUP
    total = tl.zeros((BLOCK,), tl.float32)
    start = 0
    while start < everything:
        place = start + tl.arange(0, BLOCK)
        program = place // GROUP
        count = tl.minimum(rows - program * PER_PROGRAM, PER_PROGRAM).to(tl.float32)
        mask = place < everything
        mean = tl.load(means + source + program * CHANNELS + place % GROUP, mask=mask, other=0.0)
        total += tl.where(mask, mean * count, 0.0)
        start += BLOCK
    whole = rows.to(tl.float32) * GROUP
    middle = tl.sum(total, 0) / whole
    spread = tl.zeros((BLOCK,), tl.float32)
    start = 0
    while start < everything:
        place = start + tl.arange(0, BLOCK)
        program = place // GROUP
        count = tl.minimum(rows - program * PER_PROGRAM, PER_PROGRAM).to(tl.float32)
        mask = place < everything
        where = source + program * CHANNELS + place % GROUP
        apart = tl.load(means + where, mask=mask, other=0.0) - middle
        spread += tl.where(mask, tl.load(squares + where, mask=mask, other=0.0) + count * apart * apart, 0.0)
        start += BLOCK
    inverse = tl.rsqrt(tl.sum(spread, 0) / whole + eps)
    for member in range(GROUP):
        place = tl.program_id(1) * CHANNELS + channel + member
        tl.store(factor + place, tl.load(weight + channel + member).to(tl.float32) * inverse)
        tl.store(centre + place, middle)


@triton.jit(do_not_specialize=["rows"])
def _apply(
    x: tl.tensor,
    factor: tl.tensor,
    centre: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
) -> None:
    first = tl.program_id(0) * TILE * TILES
    columns = tl.arange(0, BLOCK)
    inside = columns < CHANNELS
    start = (tl.program_id(1).to(tl.int64) * rows + first) * CHANNELS + columns
    vectors = tl.program_id(1) * CHANNELS + columns
    multiplied = tl.load(factor + vectors, mask=inside, other=0.0)[None, :]
    middle = tl.load(centre + vectors, mask=inside, other=0.0)[None, :]
    added = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    for i in range(TILES):
        lines = i * TILE + tl.arange(0, TILE)
        place = start[None, :] + lines[:, None] * CHANNELS
        mask = (first + lines < rows)[:, None] & inside[None, :]
        # The difference first: where a channel is far from zero, two products would cancel.
        block = (tl.load(x + place, mask=mask, other=0.0).to(tl.float32) - middle) * multiplied + added
        tl.store(out + place, (block / (1.0 + tl.exp(-block))).to(out.dtype.element_ty), mask=mask)


KERNEL = Kernel("group_norm_silu", functions=(_moments, _combine, _apply))
