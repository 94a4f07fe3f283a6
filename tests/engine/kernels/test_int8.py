"""Rotation and rounding to int8, and its products, against the same in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kontext_fast.engine.kernels.int8_linear import int8_linear
from kontext_fast.engine.ops import Activations, Linear, PortableOps, Quantized, quantize_int8, rotated
from kontext_fast.errors import InvalidInput
from tests.engine.kernels.oracle import DEVICE, DTYPES, SIZES, fused, noise, window

portable = PortableOps(precision="int8")


def _on_device(x: Quantized) -> Quantized:
    return Quantized(x.values.to(DEVICE), x.scale.to(DEVICE), x.dtype)


def _assert_same(result: Activations, wanted: Quantized) -> None:
    """The same scales but for float32 rounding, and of the values all but a few that are half-way between two."""
    assert isinstance(result, Quantized)
    assert result.values.dtype == torch.int8
    assert result.values.is_contiguous()
    assert result.dtype == wanted.dtype
    torch.testing.assert_close(result.scale.cpu(), wanted.scale, rtol=2e-6, atol=0)
    difference = (result.values.cpu().int() - wanted.values.int()).abs()
    assert int(difference.max()) <= 1
    assert float(difference.float().mean()) < 0.002


@DTYPES
@SIZES
def test_rows_are_rotated_and_rounded(batch: int, rows: int, width: int, dtype: torch.dtype) -> None:
    x = noise(batch, rows, width, dtype=dtype)
    _assert_same(fused("int8").prepare(window(x), quantize=True), quantize_int8(x))


@DTYPES
@SIZES
def test_norm_modulate_rotates_and_rounds(batch: int, rows: int, width: int, dtype: torch.dtype) -> None:
    x, shift, scale = (
        noise(batch, rows, width, dtype=dtype),
        *(noise(batch, width, dtype=dtype, seed=i) for i in (1, 2)),
    )
    truth = functional.layer_norm(x.float(), (width,), eps=1e-6) * (1 + scale.float()[:, None]) + shift.float()[:, None]
    result = fused("int8").norm_modulate(window(x), shift.to(DEVICE), scale.to(DEVICE), quantize=True)
    wanted = quantize_int8(truth)
    _assert_same(result, Quantized(wanted.values, wanted.scale, dtype))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_row_with_nan_or_inf_becomes_nan_alone(wrong: float) -> None:
    x = noise(1, 3, 160)
    x[0, 1, 77] = wrong
    result = fused("int8").prepare(x.to(DEVICE), quantize=True)
    assert isinstance(result, Quantized)
    lost = result.scale.cpu().isnan() | result.scale.cpu().isinf()
    assert lost.flatten().tolist() == [False, True, False]


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_product_is_exact_until_it_is_rounded(rows: int, bias: bool) -> None:
    x, weight = (
        quantize_int8(noise(*shape, dtype=torch.bfloat16, seed=i))
        for i, shape in enumerate([(2, rows, 160), (304, 160)])
    )
    added = noise(304, dtype=torch.bfloat16, seed=2) if bias else None
    wanted = portable.linear(x, Linear(weight, added))
    on_device = Linear(_on_device(weight), None if added is None else added.to(DEVICE))
    result = fused("int8").linear(_on_device(x), on_device).cpu()
    assert result.dtype == torch.bfloat16
    assert result.shape == (2, rows, 304)
    torch.testing.assert_close(result, wanted, rtol=2**-7, atol=0)
    assert float((result != wanted).float().mean()) < 0.01


def test_product_activates_what_it_writes() -> None:
    x, weight = (quantize_int8(noise(*shape, dtype=torch.bfloat16)) for shape in ((1, 70, 96), (320, 96)))
    bias = noise(320, dtype=torch.bfloat16, seed=2)
    weight = Quantized(weight.values, weight.scale / 100, weight.dtype)
    truth = portable.linear(Quantized(x.values, x.scale, torch.float32), Linear(weight, bias))
    truth = functional.gelu(truth, approximate="tanh")
    result = int8_linear(_on_device(x), _on_device(weight), bias.to(DEVICE), gelu=True).cpu().float()
    assert float((result - truth).norm() / truth.norm()) < 2**-9


@pytest.mark.parametrize("attended", [True, False])
def test_mlp_is_rounded_as_after_separate_operations(attended: bool) -> None:
    x, weight = (quantize_int8(noise(*shape, dtype=torch.bfloat16)) for shape in ((2, 7, 96), (384, 96)))
    weight = Quantized(weight.values, weight.scale / 100, weight.dtype)
    layer, on_device = (
        Linear(to(weight), noise(384, dtype=torch.bfloat16, seed=2).to(device))
        for to, device in ((lambda quantized: quantized, "cpu"), (_on_device, DEVICE))
    )
    beside = noise(2, 7, 96, dtype=torch.bfloat16, seed=3) / 10
    ops = fused("int8")
    truth = functional.gelu(portable.linear(Quantized(x.values, x.scale, torch.float32), layer), approximate="tanh")
    if attended:
        wanted = portable.join_linear_gelu(lambda: beside, x, layer, quantize=True)
        result = ops.join_linear_gelu(lambda: window(beside), _on_device(x), on_device, quantize=True)
        truth = torch.cat((beside.float(), truth), -1)
    else:
        wanted = portable.linear_gelu(x, layer, quantize=True)
        result = ops.linear_gelu(_on_device(x), on_device, quantize=True)
    plain, error = (_error(activations, rotated(truth)) for activations in (wanted, result))
    assert 0.001 < error < 1.1 * plain


def _error(activations: Activations, truth: Tensor) -> float:
    assert isinstance(activations, Quantized)
    difference: Tensor = activations.values.cpu() * activations.scale.cpu() - truth
    return float(difference.norm() / truth.norm())


@pytest.mark.parametrize(("out", "shared"), [(90, 160), (96, 168)])
def test_width_not_a_multiple_of_16_is_refused(out: int, shared: int) -> None:
    x, weight = (quantize_int8(noise(*shape, dtype=torch.bfloat16)) for shape in ((1, 2, shared), (out, shared)))
    with pytest.raises(InvalidInput, match=f"{shared} to {out}"):
        fused("int8").linear(_on_device(x), Linear(_on_device(weight), None))


def test_float32_is_refused() -> None:
    x, weight = quantize_int8(noise(1, 2, 96)), quantize_int8(noise(96, 96))
    with pytest.raises(InvalidInput, match="bfloat16"):
        fused("int8").linear(_on_device(x), Linear(_on_device(weight), None))


def test_parts_that_share_a_rotation_are_refused() -> None:
    x, beside = noise(1, 2, 96).to(DEVICE), noise(1, 2, 160).to(DEVICE)
    from kontext_fast.engine.kernels.int8_rows import quantize_int8 as quantize_parts

    with pytest.raises(InvalidInput, match="96 and 160"):
        quantize_parts(x, beside=beside)


def test_rotation_spreads_an_outlier_and_is_its_own_inverse() -> None:
    x = torch.zeros(1, 256)
    x[0, 5] = 1
    spread = rotated(x)
    assert torch.equal(spread.abs(), torch.cat((torch.full((1, 128), 128**-0.5), torch.zeros(1, 128)), 1))
    torch.testing.assert_close(rotated(spread), x)
