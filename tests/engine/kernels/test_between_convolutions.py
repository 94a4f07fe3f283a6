"""Biases, residuals and doubled images with channels innermost: every bit of PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.engine.kernels.oracle import DEVICE, DTYPES

from kontext_fast.engine.kernels.between_convolutions import add_bias, double_sides, softmax  # isort: skip (as in its neighbours)

SIZES = pytest.mark.parametrize("size", [(1, 128, 9, 31), (2, 24, 5, 3), (1, 72, 33, 17), (3, 8, 1, 1)])


def _drawn(size: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    numbers = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 30
    layout = {"memory_format": torch.channels_last} if len(size) == 4 else {}
    return numbers.to(dtype).contiguous(**layout)


@DTYPES
@SIZES
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_bias_then_residual_are_added_bit_for_bit(
    size: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    x, residual, bias = _drawn(size, dtype), _drawn(size, dtype, 1), _drawn(size[1:2], dtype, 2)
    with_bias = x + bias[:, None, None]
    result = add_bias(x.to(DEVICE, copy=True), bias.to(DEVICE))
    assert torch.equal(result.cpu(), with_bias)
    result = add_bias(x.to(DEVICE, memory_format=layout, copy=True), bias.to(DEVICE), residual.to(DEVICE))
    assert torch.equal(result.cpu(), (residual + with_bias) / 1.0)


def test_bias_is_added_in_place() -> None:
    x = _drawn((1, 8, 2, 2), torch.float32).to(DEVICE)
    expected = x + 1
    assert add_bias(x, torch.ones(8, device=DEVICE)) is x
    assert torch.equal(x, expected)


@DTYPES
@SIZES
def test_every_pixel_comes_four_times(size: tuple[int, ...], dtype: torch.dtype) -> None:
    x = _drawn(size, dtype)
    for image in (x, x.contiguous()):
        result = double_sides(image.to(DEVICE))
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(result.cpu(), functional.interpolate(x, scale_factor=2.0, mode="nearest"))


@DTYPES
@pytest.mark.parametrize("numbers", [1, 300, 5000])
def test_softmax_equals_that_of_pytorch(numbers: int, dtype: torch.dtype) -> None:
    scores = torch.randn(2, 3, numbers, generator=torch.Generator().manual_seed(0)) * 40
    scores[0, 0] -= 1000
    result = softmax(scores.to(DEVICE), 0.25, dtype)
    assert result.dtype == dtype
    tolerance = 2**-7 if dtype == torch.bfloat16 else 1e-5
    expected = torch.softmax(scores.double() * 0.25, -1)
    torch.testing.assert_close(result.double().cpu(), expected, rtol=tolerance, atol=tolerance * 1e-3)
