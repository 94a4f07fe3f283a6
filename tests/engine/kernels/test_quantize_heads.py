"""Rounding attention's inputs to float8: one scale per sample and head."""

from __future__ import annotations

import pytest
import torch

from kontext_fast.engine import ops as portable
from kontext_fast.errors import KontextError
from tests.engine.kernels.oracle import DEVICE, DTYPES, noise, step_of

from kontext_fast.engine.kernels.quantize_heads import quantize_heads  # isort: skip (after the skip of oracle)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (2, 33, 3, 16), (1, 64, 2, 128), (2, 70, 5, 32)], ids=str)
def test_scales_and_values_equal_the_portable_ones(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, tokens, heads, channels = shape
    larger = torch.full((batch, tokens + 3, heads, channels), float("nan"), dtype=dtype, device=DEVICE)
    x = noise(*shape, dtype=dtype)
    larger[:, 1 : tokens + 1] = x.to(DEVICE)
    result, wanted = quantize_heads(larger[:, 1 : tokens + 1]), portable.quantize_heads(x)
    assert result.dtype == dtype
    assert result.scale.shape == (batch, 1, heads, 1)
    assert torch.equal(result.scale.cpu(), wanted.scale)
    exact = (x.float() * (1 / wanted.scale)).to(torch.float8_e4m3fn)
    assert torch.equal(result.values.cpu().view(torch.uint8), exact.view(torch.uint8))
    off = (result.values.cpu().float() - wanted.values.float()).abs()
    assert (off <= step_of(wanted.values.float())).all()


def test_head_with_nan_or_inf_becomes_nan_alone() -> None:
    x = noise(2, 40, 3, 16)
    x[1, 37, 2, 5] = float("nan")
    x[0, 3, 0, 1] = -float("inf")
    lost = quantize_heads(x.to(DEVICE)).dequantized().cpu().isnan()
    assert torch.equal(lost, portable.quantize_heads(x).dequantized().isnan())
    assert lost[1, :, 2].all()
    assert lost.sum() == 2 * 40 * 16


def test_zeros_stay_zeros() -> None:
    result = quantize_heads(torch.zeros(1, 5, 2, 16, device=DEVICE))
    assert not result.dequantized().cpu().any()


def test_other_layout_is_refused() -> None:
    with pytest.raises(KontextError, match="another layout"):
        quantize_heads(torch.zeros(1, 2, 5, 16, device=DEVICE).transpose(1, 2))
