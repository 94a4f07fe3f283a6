"""The softmax of attention over scores that may be masked: of a row with nothing but -inf it is 0, and not NaN.

PyTorch's own compares every score with -inf, reduces what it finds, and copies the result with those rows replaced,
which takes a GPU two and a half times as long as the softmax. Nearly every row shows in its first numbers that it is
not masked, so here only those are read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kontext_fast.engine.kernels.language import tl, triton
from kontext_fast.engine.kernels.registry import Kernel
from kontext_fast.engine.kernels.rows import device_of

_ROWS = 32
"""Of a program."""
_READ = 32
"""Numbers of each row that are read at once."""


def safe_softmax(scores: Tensor, dim: int = -1) -> Tensor:
    """Every bit of `aten._safe_softmax` of contiguous `scores`, over their last dimension."""
    out = torch.softmax(scores, dim)
    numbers = scores.shape[-1]
    rows = scores.numel() // max(1, numbers)
    if scores.numel():
        with device_of(scores):
            _zero_masked[(triton.cdiv(rows, _ROWS),)](scores, out, rows, numbers, ROWS=_ROWS, READ=_READ, num_warps=4)
    return out


@triton.jit(do_not_specialize=["rows", "numbers"])
def _zero_masked(
    scores: tl.tensor, out: tl.tensor, rows: tl.tensor, numbers: tl.tensor, ROWS: tl.constexpr, READ: tl.constexpr
) -> None:
    """Write 0 to the rows of `out` whose `scores` are all -inf."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    start = row.to(tl.int64) * numbers
    there = row < rows
    # A row that is not there counts as one that is not masked. NaN is not -inf.
    unmasked = tl.where(there, 0, 1)
    first = 0
    while (first < numbers) & (tl.min(unmasked, 0) == 0):
        place = first + tl.arange(0, READ)
        inside = there[:, None] & (place < numbers)[None, :]
        block = tl.load(scores + start[:, None] + place[None, :], mask=inside, other=float("-inf"))
        unmasked = tl.maximum(unmasked, tl.max((block != float("-inf")).to(tl.int32), 1))
        first += READ
    if tl.min(unmasked, 0) == 0:
        masked = unmasked == 0
        first = 0
        while first < numbers:
            place = first + tl.arange(0, READ)
            inside = masked[:, None] & (place < numbers)[None, :]
            zeros = tl.zeros((ROWS, READ), out.dtype.element_ty)
            tl.store(out + start[:, None] + place[None, :], zeros, mask=inside)
            first += READ


KERNEL = Kernel("safe_softmax", functions=(_zero_masked,))
