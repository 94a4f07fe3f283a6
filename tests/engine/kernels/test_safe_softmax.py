"""The softmax of masked scores: every bit of PyTorch's, whichever rows are masked."""

from __future__ import annotations

import pytest
import torch

from tests.engine.kernels.oracle import DEVICE, DTYPES

from kontext_fast.engine.kernels.safe_softmax import safe_softmax  # isort: skip (as in its neighbours)

INF, NAN = float("inf"), float("nan")


@DTYPES
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 5, 40), (1, 65, 100)])
def test_softmax_of_masked_rows_has_every_bit(size: tuple[int, ...], dtype: torch.dtype) -> None:
    scores = (torch.randn(size, generator=torch.Generator().manual_seed(0)) * 30).to(dtype)
    rows = scores.view(-1, size[-1])
    rows[::3] = -INF  # wholly masked
    rows[1::3, :-1] = -INF  # but for the last number
    rows[4::9, -1:] = INF
    rows[7::9, :1] = NAN
    scores = scores.to(DEVICE)
    expected = torch.ops.aten._safe_softmax(scores, -1)
    result = safe_softmax(scores)
    assert result.dtype == dtype
    assert torch.equal(result.view(torch.uint8), expected.view(torch.uint8))
    assert not result.view(-1, size[-1])[::3].any()
