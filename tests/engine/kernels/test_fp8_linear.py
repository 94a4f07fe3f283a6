"""Products of quantized matrices by PyTorch's own operation, against the same in float32."""

from __future__ import annotations

import pytest
import torch

from kontext_fast.engine.ops import Linear, Quantized, quantize
from kontext_fast.errors import InvalidInput
from tests.engine.kernels.oracle import DEVICE, fused, noise, portable


def _on_device(x: Quantized) -> Quantized:
    return Quantized(x.values.to(DEVICE), x.scale.to(DEVICE), x.dtype)


@pytest.mark.parametrize("rows", [1, 7, 65])
@pytest.mark.parametrize("bias", [True, False])
def test_fp8_product_is_scaled_biased_and_rounded_once(rows: int, bias: bool) -> None:
    x, weight = (
        quantize(noise(*shape, dtype=torch.bfloat16, seed=i)) for i, shape in enumerate([(2, rows, 160), (96, 160)])
    )
    added = noise(96, dtype=torch.bfloat16, seed=2) if bias else None
    wanted = portable.linear(Quantized(x.values, x.scale, torch.float32), Linear(weight, added))
    result = fused().linear(_on_device(x), Linear(_on_device(weight), None if added is None else added.to(DEVICE)))
    assert result.dtype == torch.bfloat16
    assert result.shape == (2, rows, 96)
    # Besides one rounding to bfloat16, hardware sums e4m3 products in fewer bits than float32 has.
    assert float((result.cpu().float() - wanted).norm() / wanted.norm()) < 2**-8


def test_plain_matrices_use_the_plain_product() -> None:
    x, weight, bias = noise(2, 7, 160), noise(96, 160, seed=1), noise(96, seed=2)
    result = fused().linear(x.to(DEVICE), Linear(weight.to(DEVICE), bias.to(DEVICE)))
    torch.testing.assert_close(result.cpu(), portable.linear(x, Linear(weight, bias)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("out", "shared"), [(90, 160), (96, 168)])
def test_width_not_a_multiple_of_16_is_refused(out: int, shared: int) -> None:
    x, weight = quantize(noise(1, 2, shared, dtype=torch.bfloat16)), quantize(noise(out, shared, dtype=torch.bfloat16))
    with pytest.raises(InvalidInput, match=f"{shared} to {out}"):
        fused().linear(_on_device(x), Linear(_on_device(weight), None))


def test_float32_is_refused() -> None:
    x, weight = quantize(noise(1, 2, 96)), quantize(noise(96, 96))
    with pytest.raises(InvalidInput, match="bfloat16"):
        fused().linear(_on_device(x), Linear(_on_device(weight), None))


def test_one_quantized_operand_alone_is_an_error() -> None:
    quantized = _on_device(quantize(noise(1, 2, 96, dtype=torch.bfloat16)))
    with pytest.raises(TypeError, match="both"):
        fused().linear(quantized, Linear(noise(96, 96).to(DEVICE), None))
