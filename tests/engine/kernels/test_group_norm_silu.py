"""Group norm with SiLU over channels that are innermost: the numbers of PyTorch's, in one layout throughout."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.engine.kernels.oracle import DEVICE, DTYPES

from kontext_fast.engine.kernels.group_norm_silu import group_norm_silu  # isort: skip (after the skip of oracle)

SIZES = pytest.mark.parametrize(
    ("batch", "channels", "groups", "side"),
    [(1, 128, 32, (9, 31)), (2, 24, 8, (5, 3)), (1, 72, 8, (33, 17)), (2, 8, 8, (1, 1))],
)  # fmt: skip


def _inputs(batch: int, channels: int, side: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, *side, generator=generator) * 3
    # Far from zero, as a stream with a strong mean is.
    x[:, ::3] += 50
    weight, bias = torch.randn(2, channels, generator=generator)
    return tuple(one.to(dtype) for one in (x.contiguous(memory_format=torch.channels_last), weight, bias))


@DTYPES
@SIZES
def test_kernel_equals_group_norm_then_silu(
    batch: int, channels: int, groups: int, side: tuple[int, int], dtype: torch.dtype
) -> None:
    x, weight, bias = _inputs(batch, channels, side, dtype)
    result = group_norm_silu(x.to(DEVICE), groups, weight.to(DEVICE), bias.to(DEVICE), 1e-6)
    wide = functional.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-6)
    expected = functional.silu(wide)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.dtype == dtype
    tolerance = 2**-7 if dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(result.double().cpu(), expected, rtol=tolerance, atol=tolerance * 0.1)


def test_large_image_in_another_layout() -> None:
    x, weight, bias = _inputs(1, 16, (70, 61), torch.float32)
    expected = functional.silu(functional.group_norm(x, 4, weight, bias, 1e-6))
    for one in (x, x.contiguous(), x.transpose(2, 3).contiguous().transpose(2, 3)):
        result = group_norm_silu(one.to(DEVICE), 4, weight.to(DEVICE), bias.to(DEVICE), 1e-6)
        torch.testing.assert_close(result.cpu(), expected, rtol=2e-5, atol=2e-5)


def test_nan_pixel_spreads_over_its_group() -> None:
    x, weight, bias = _inputs(1, 16, (4, 4), torch.float32)
    x[0, 5, 2, 2] = torch.nan
    result = group_norm_silu(x.to(DEVICE), 4, weight.to(DEVICE), bias.to(DEVICE), 1e-6)
    assert result[0, 4:8].isnan().all()
    assert not result[0, :4].isnan().any()
