"""Inputs for kernels and what their outputs are held against: `PortableOps` on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kontext_fast.engine.attention.pytorch import MATH
from kontext_fast.engine.ops import E4M3_MAX, PortableOps, Precision, Quantized
from tests import needs

pytest.importorskip("triton", reason=needs.TRITON)

from kontext_fast.engine.kernels.fused import FusedInt8Ops, FusedOps  # (after the skip)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
SIZES = pytest.mark.parametrize(
    ("batch", "rows", "width"), [(1, 1, 96), (2, 7, 160), (1, 65, 64), (2, 2, 3072)], ids=lambda size: str(size)
)

portable = PortableOps()


def fused(precision: Precision = "fp8") -> FusedOps:
    """What quantizes to `precision`, with the one attention kernel that every device has."""
    return (FusedInt8Ops if precision == "int8" else FusedOps)(MATH)


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers, those of some channels 30 times as large, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    values[..., :: max(7, shape[-1] // 3)] *= 30
    return values.to(dtype)


def window(x: Tensor) -> Tensor:
    """The same numbers on the device of the kernels, as a view into a larger buffer that is full of NaN."""
    larger = torch.full((x.shape[0], x.shape[1] + 3, x.shape[2] + 32), float("nan"), dtype=x.dtype, device=DEVICE)
    view = larger[:, 2 : 2 + x.shape[1], 16 : 16 + x.shape[2]]
    view.copy_(x)
    return view


def assert_rounds_once(result: Any, truth: Tensor, dtype: torch.dtype) -> None:
    """`result` is `truth`, which was computed in float32 throughout, rounded to `dtype`."""
    assert result.dtype == dtype
    assert result.is_contiguous()
    # Half a step of bfloat16 is at most 2^-8 of a number; float32 is off by last bits of the largest.
    relative = 2**-8 if dtype == torch.bfloat16 else 1e-6
    bound = relative * truth.abs() + 2e-6 * truth.abs().max()
    excess = float(((result.cpu().float() - truth).abs() / bound).nan_to_num(nan=torch.inf).max())
    assert excess <= 1, f"off by {excess:.2f} times what rounding explains"


def assert_quantizes(result: Any, truth: Tensor, dtype: torch.dtype) -> None:
    """`result` is `truth`, float32, quantized by row: the scale exactly but for float32 rounding, each value one of the
    two nearest in e4m3, and all but a few the very ones that dividing gives."""
    assert isinstance(result, Quantized)
    assert result.dtype == dtype
    assert result.values.dtype == torch.float8_e4m3fn
    assert result.values.is_contiguous()
    assert result.scale.is_contiguous()
    wanted = portable.prepare(truth, quantize=True)
    assert isinstance(wanted, Quantized)
    assert result.scale.shape == wanted.scale.shape
    torch.testing.assert_close(result.scale.cpu(), wanted.scale, rtol=1e-6, atol=0)
    values, expected = result.values.cpu().float(), wanted.values.float()
    assert not values.isnan().any()
    assert ((values - expected).abs() <= step_of(expected)).all()
    assert float((values != expected).float().mean()) < 0.005


def step_of(values: Tensor) -> Tensor:
    """The distance from each e4m3 number to the next larger one in magnitude."""
    exponent = values.abs().clamp(min=2**-6, max=E4M3_MAX).log2().floor()
    return torch.exp2(exponent - 3)
