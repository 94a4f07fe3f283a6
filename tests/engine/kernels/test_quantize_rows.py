"""Rounding to float8, bit for bit."""

from __future__ import annotations

import pytest
import torch

from kontext_fast.engine.ops import Quantized
from tests.engine.kernels.oracle import DEVICE, DTYPES, SIZES, assert_quantizes, fused, noise, portable, window


@DTYPES
@SIZES
def test_scales_equal_the_portable_ones(batch: int, rows: int, width: int, dtype: torch.dtype) -> None:
    x = noise(batch, rows, width, dtype=dtype)
    result, wanted = fused().prepare(window(x), quantize=True), portable.prepare(x, quantize=True)
    assert isinstance(result, Quantized)
    assert isinstance(wanted, Quantized)
    assert torch.equal(result.scale.cpu(), wanted.scale)
    exact = (x.float() * (1 / wanted.scale)).to(torch.float8_e4m3fn)
    assert torch.equal(result.values.cpu().view(torch.uint8), exact.view(torch.uint8))
    assert_quantizes(result, x.float(), dtype)


def test_every_bfloat16_number_rounds_as_portable() -> None:
    """All exponents down to what e4m3 cannot hold, all mantissas, both signs, at a scale that divides exactly."""
    bits = torch.arange(0, 2**15, dtype=torch.int16).view(torch.bfloat16)
    numbers = bits[(bits <= 448) & ~bits.isnan()]
    numbers = torch.cat((numbers, -numbers))
    x = torch.nn.functional.pad(numbers, (0, -len(numbers) % 64)).view(1, -1, 64)
    x[..., 0] = 448
    result, wanted = fused().prepare(x.to(DEVICE), quantize=True), portable.prepare(x, quantize=True)
    assert isinstance(result, Quantized)
    assert isinstance(wanted, Quantized)
    assert torch.equal(result.scale.cpu(), wanted.scale)
    assert torch.equal(result.values.cpu().float(), wanted.values.float())


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_row_with_nan_or_inf_becomes_nan_alone(wrong: float) -> None:
    x = noise(1, 3, 160)
    x[0, 1, 77] = wrong
    result = fused().prepare(x.to(DEVICE), quantize=True)
    assert isinstance(result, Quantized)
    lost = result.dequantized().cpu().isnan()
    assert lost[0, 1].all()
    assert not lost[0, (0, 2)].any()


def test_zeros_and_smallest_numbers_have_a_scale() -> None:
    x = torch.zeros(1, 2, 96)
    x[0, 1] = 1e-30
    result, wanted = fused().prepare(x.to(DEVICE), quantize=True), portable.prepare(x, quantize=True)
    assert isinstance(result, Quantized)
    assert isinstance(wanted, Quantized)
    assert torch.equal(result.scale.cpu(), wanted.scale)
    assert not result.values.cpu().float().any()


def test_prepare_without_quantizing_returns_its_input() -> None:
    x = noise(1, 2, 96).to(DEVICE)
    assert fused().prepare(x, quantize=False) is x
