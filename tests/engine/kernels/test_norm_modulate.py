"""Layer norm, modulation and rounding, against the same in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kontext_fast.engine.ops import PRECISIONS, Precision, Quantized
from tests.engine.kernels.oracle import (
    DEVICE,
    DTYPES,
    SIZES,
    assert_quantizes,
    assert_rounds_once,
    fused,
    noise,
    portable,
    window,
)


def _inputs(batch: int, rows: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return noise(batch, rows, width, dtype=dtype) + 3, noise(batch, 6 * width, dtype=dtype, seed=1)


def _truth(x: Tensor, modulation: Tensor) -> Tensor:
    shift, scale, *_ = modulation.float().chunk(6, -1)
    truth = portable.norm_modulate(x.float(), shift, scale, quantize=False)
    assert isinstance(truth, Tensor)
    return truth


@DTYPES
@SIZES
def test_norm_modulate_rounds_once(batch: int, rows: int, width: int, dtype: torch.dtype) -> None:
    x, modulation = _inputs(batch, rows, width, dtype)
    shift, scale, *_ = modulation.to(DEVICE).chunk(6, -1)
    result = fused().norm_modulate(window(x), shift, scale, quantize=False)
    assert_rounds_once(result, _truth(x, modulation), dtype)


@DTYPES
@SIZES
def test_norm_modulate_quantizes_its_result(batch: int, rows: int, width: int, dtype: torch.dtype) -> None:
    x, modulation = _inputs(batch, rows, width, dtype)
    shift, scale, *_ = modulation.to(DEVICE).chunk(6, -1)
    result = fused().norm_modulate(window(x), shift, scale, quantize=True)
    assert_quantizes(result, _truth(x, modulation), dtype)


@DTYPES
@SIZES
@pytest.mark.parametrize("precision", PRECISIONS)
def test_norm_after_add_has_the_bits_of_both(
    batch: int, rows: int, width: int, dtype: torch.dtype, precision: Precision
) -> None:
    x, modulation = _inputs(batch, rows, width, dtype)
    update = noise(batch, rows, width, dtype=dtype, seed=2).to(DEVICE)
    shift, scale, gate, *_ = modulation.to(DEVICE).chunk(6, -1)
    ops, quantize = fused(precision), precision != "bf16"
    apart, merged = window(x), window(x)
    ops.add_gated(apart, gate, update)
    expected = ops.norm_modulate(apart, shift, scale, quantize=quantize)
    result = ops.add_norm_modulate(merged, gate, update, shift, scale, quantize=quantize)
    assert torch.equal(merged, apart)
    assert not torch.equal(merged.cpu(), x)
    whole = merged._base, apart._base
    assert all(base is not None for base in whole)
    assert torch.equal(*(base.isnan() for base in whole))  # type: ignore[union-attr]
    if isinstance(result, Quantized) and isinstance(expected, Quantized):
        assert torch.equal(result.values.view(torch.uint8), expected.values.view(torch.uint8))
        assert torch.equal(result.scale, expected.scale)
    else:
        assert torch.equal(result, expected)  # type: ignore[arg-type]


def test_row_far_from_zero_keeps_its_precision() -> None:
    x, modulation = _inputs(1, 3, 160, torch.float32)
    x += 3000
    shift, scale, *_ = modulation.to(DEVICE).chunk(6, -1)
    result = fused().norm_modulate(x.to(DEVICE), shift, scale, quantize=False)
    assert isinstance(result, Tensor)
    truth = torch.nn.functional.layer_norm(x.double(), (160,), eps=1e-6)
    truth = truth * (1 + scale.cpu().double()[:, None]) + shift.cpu().double()[:, None]
    assert float((result.cpu() - truth).norm() / truth.norm()) < 1e-4


@pytest.mark.parametrize("quantize", [False, True])
def test_row_of_zeros_gives_the_shift(quantize: bool) -> None:
    _, modulation = _inputs(1, 2, 160, torch.float32)
    shift, scale, *_ = modulation.to(DEVICE).chunk(6, -1)
    result = fused().norm_modulate(torch.zeros(1, 2, 160, device=DEVICE), shift, scale, quantize=quantize)
    wanted = shift.cpu()[:, None].expand(1, 2, 160)
    if quantize:
        assert_quantizes(result, wanted, torch.float32)
    else:
        assert torch.equal(result.cpu(), wanted)  # type: ignore[union-attr]
