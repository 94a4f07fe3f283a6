"""GELU, alone and beside the attention's output, against the same in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.engine.kernels.oracle import (
    DEVICE,
    DTYPES,
    SIZES,
    assert_quantizes,
    assert_rounds_once,
    fused,
    noise,
    window,
)


@DTYPES
@SIZES
@pytest.mark.parametrize("quantize", [False, True], ids=["rounded", "quantized"])
def test_gelu_alone_equals_pytorch(batch: int, rows: int, width: int, dtype: torch.dtype, quantize: bool) -> None:
    x = noise(batch, rows, width, dtype=dtype)
    truth = functional.gelu(x.float(), approximate="tanh")
    result = fused().gelu(window(x), quantize=quantize)
    (assert_quantizes if quantize else assert_rounds_once)(result, truth, dtype)


@DTYPES
@SIZES
def test_gelu_beside_attention_equals_pytorch(batch: int, rows: int, width: int, dtype: torch.dtype) -> None:
    attended, hidden, truth = _halves(batch, rows, width, dtype)
    result = fused().join_gelu(attended.to(DEVICE), window(hidden), quantize=False)
    assert_rounds_once(result, truth, dtype)


@DTYPES
@SIZES
@pytest.mark.parametrize("factor", [0.1, 100], ids=["hidden-larger", "attended-larger"])
def test_joined_row_has_one_scale(batch: int, rows: int, width: int, dtype: torch.dtype, factor: float) -> None:
    attended, hidden, truth = _halves(batch, rows, width, dtype, factor)
    result = fused().join_gelu(attended.to(DEVICE), window(hidden), quantize=True)
    assert_quantizes(result, truth, dtype)


def _halves(batch: int, rows: int, width: int, dtype: torch.dtype, factor: float = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Attention's output, the MLP's first layer, and the truth about both."""
    attended = noise(batch, rows, width, dtype=dtype) * factor
    hidden = noise(batch, rows, 4 * width, dtype=dtype, seed=1)
    return attended, hidden, torch.cat((attended.float(), functional.gelu(hidden.float(), approximate="tanh")), -1)


def test_large_numbers_stay_finite() -> None:
    x = torch.tensor([-3e38, -1e30, -1e4, -30.0, -11.0, -0.0, 0.0, 11.0, 30.0, 1e4, 1e30, 3e38]).repeat(8)
    result = fused().gelu(x.to(DEVICE)[None, None], quantize=False)
    assert isinstance(result, Tensor)
    torch.testing.assert_close(result.cpu()[0, 0], x.clamp(min=0), rtol=1e-6, atol=1e-6)
