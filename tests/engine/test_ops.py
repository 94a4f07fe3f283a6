"""The portable operations are what diffusers computes, write only where they are told to, and round fp8 as stated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kontext_fast.engine.attention.base import AttentionKernel
from kontext_fast.engine.attention.pytorch import MATH, NATIVE
from kontext_fast.engine.ops import Activations, JointQKV, Linear, PortableOps, QKNorm, Quantized, Rope, quantize
from tests.engine.transformers import relative_error

OPS = PortableOps()
B, ROWS, HEADS, HEAD_DIM = 2, 5, 3, 8
WIDTH = HEADS * HEAD_DIM


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    chosen: torch.dtype = request.param
    return chosen


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tensor(activations: Activations) -> Tensor:
    assert isinstance(activations, Tensor)
    return activations


def test_norm_modulate_is_bit_identical_to_diffusers(dtype: torch.dtype) -> None:
    from diffusers.models.normalization import AdaLayerNormContinuous

    x, shift, scale = (noise(*shape, dtype=dtype) for shape in ((B, ROWS, WIDTH), (B, WIDTH), (B, WIDTH)))
    scale = scale.flip(0)
    theirs = AdaLayerNormContinuous(WIDTH, WIDTH, elementwise_affine=False, eps=1e-6)
    theirs.silu = theirs.linear = torch.nn.Identity()
    wide = torch.full((B, ROWS + 4, WIDTH), torch.nan, dtype=dtype)
    wide[:, 2:-2] = x
    result = OPS.norm_modulate(wide[:, 2:-2], shift, scale, quantize=False)
    assert torch.equal(tensor(result), theirs(x, torch.cat([scale, shift], dim=1)))


def test_write_qkv_equals_diffusers_in_its_rows_only(dtype: torch.dtype) -> None:
    from diffusers.models.embeddings import apply_rotary_emb
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    total, offset = ROWS + 6, 4
    norms = [torch.nn.RMSNorm(HEAD_DIM, eps=1e-6, dtype=dtype) for _ in range(2)]
    for seed, norm in enumerate(norms):
        norm.weight.data = 1 + noise(HEAD_DIM, dtype=dtype, seed=seed)
    ids = torch.stack([torch.ones(ROWS), torch.arange(float(ROWS)), 3 * torch.arange(float(ROWS))], dim=1)
    cos, sin = FluxPosEmbed(theta=10000, axes_dim=[2, 4, 2])(ids)
    beside = noise(B, ROWS, 3 * WIDTH + 7, dtype=dtype)
    joint = JointQKV(*torch.full((3, B, total, HEADS, HEAD_DIM), torch.nan, dtype=dtype))
    qk_norm = QKNorm(norms[0].weight.data, norms[1].weight.data, 1e-6)

    OPS.write_qkv(beside[..., : 3 * WIDTH], qk_norm, Rope(cos[:, ::2], sin[:, ::2]), joint, offset)

    query, key, value = beside[..., : 3 * WIDTH].reshape(B, ROWS, 3, HEADS, HEAD_DIM).unbind(2)
    with torch.no_grad():
        query, key = (
            apply_rotary_emb(norm(x), (cos, sin), sequence_dim=1) for norm, x in zip(norms, (query, key), strict=True)
        )
    rows = slice(offset, offset + ROWS)
    for written, theirs in ((joint.query, query), (joint.key, key), (joint.value, value)):
        assert torch.equal(written[:, rows], theirs)
        assert written[:, :offset].isnan().all()
        assert written[:, rows.stop :].isnan().all()


def test_join_gelu_equals_gelu_of_the_concatenation(dtype: torch.dtype) -> None:
    attended, beside = noise(B, ROWS, WIDTH, dtype=dtype), noise(B, ROWS, 40, dtype=dtype, seed=1)
    hidden = beside[..., 8:]
    theirs = torch.cat([attended, torch.nn.GELU(approximate="tanh")(hidden)], dim=2)
    assert torch.equal(tensor(OPS.join_gelu(attended, hidden, quantize=False)), theirs)
    quantized = OPS.join_gelu(attended, hidden, quantize=True)
    assert isinstance(quantized, Quantized)
    assert torch.equal(quantized.dequantized(), quantize(theirs).dequantized())
    assert torch.equal(tensor(OPS.gelu(hidden, quantize=False)), theirs[..., WIDTH:])


def test_add_gated_is_in_place_and_rounds_as_diffusers(dtype: torch.dtype) -> None:
    stream, gate, update = (noise(*shape, dtype=dtype) for shape in ((B, ROWS, WIDTH), (B, WIDTH), (B, ROWS, WIDTH)))
    theirs = stream + gate.unsqueeze(1) * update
    wide = torch.zeros(B, ROWS + 2, WIDTH, dtype=dtype)
    wide[:, 1:-1] = stream
    OPS.add_gated(wide[:, 1:-1], gate, update)
    assert torch.equal(wide[:, 1:-1], theirs)
    assert not wide[:, 0].any()
    assert not wide[:, -1].any()


@pytest.mark.parametrize("kernel", [NATIVE, MATH], ids=lambda kernel: kernel.name)
def test_attention_over_longer_buffers_is_exact(kernel: AttentionKernel, dtype: torch.dtype) -> None:
    query, key, value = noise(3, B, ROWS + 6, HEADS, HEAD_DIM, dtype=dtype)
    result = PortableOps(kernel).attention(JointQKV(query[:, :ROWS], key, value))
    weights = torch.einsum("bqhd,bkhd->bhqk", query[:, :ROWS].double(), key.double()) * HEAD_DIM**-0.5
    truth = torch.einsum("bhqk,bkhd->bqhd", weights.softmax(-1), value.double()).flatten(2)
    assert result.shape == (B, ROWS, WIDTH)
    assert relative_error(result, truth) < (1e-6 if dtype == torch.float32 else 2e-2)


def test_quantize_scales_rows_and_rounds_to_nearest() -> None:
    x = torch.tensor([[448.0, 1.0, -17.0, 18.9], [0.0, 0.0, 0.0, 0.0], [-1e-6, 5e-7, 0.0, 1e-9]])
    quantized = quantize(x)
    assert quantized.scale[0] == 1
    # Between 16 and 32 e4m3 has steps of 2: 17 is a tie, which goes to the even mantissa.
    assert quantized.values[0].float().tolist() == [448.0, 1.0, -16.0, 18.0]
    assert not quantized.dequantized()[1].any()
    assert quantized.values[2, 0].float() == -448
    assert quantized.dequantized()[2, 0] == pytest.approx(-1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_quantize_keeps_nan_and_inf_visible(bad: float) -> None:
    x = torch.ones(2, 4)
    x[0, 2] = bad
    dequantized = quantize(x).dequantized()
    assert dequantized[0].isnan().any()
    torch.testing.assert_close(dequantized[1], x[1])


def test_quantize_keeps_every_magnitude() -> None:
    """A largest value whose quotient rounds to just above 448 must not become NaN, as what is far above does."""
    x = noise(20000, 3, seed=3) * 10.0 ** noise(20000, 1, seed=4)
    dequantized = quantize(x).dequantized()
    assert dequantized.isfinite().all()
    assert ((dequantized - x).abs() <= x.abs() / 16 + x.abs().amax(-1, keepdim=True) * 2.0**-18).all()


@pytest.mark.parametrize("scaled", [None, "activations", "inputs", "outputs"])
def test_fp8_product_errs_by_two_roundings(scaled: str | None) -> None:
    """Measured: 0.037 of random numbers; with 3 of 3072 channels scaled by 100, 0.031 to 0.037. bfloat16: 0.003."""
    x, weight = noise(1, 64, 3072), noise(256, 3072, seed=1) * 3072**-0.5
    if scaled == "activations":
        x[..., 5:8] *= 100
    elif scaled == "inputs":
        weight[:, 5:8] *= 100
    elif scaled == "outputs":
        weight[5:6] *= 100
    bias = noise(256, seed=2)
    result = OPS.linear(quantize(x), Linear(quantize(weight), bias))
    truth = x.double() @ weight.double().T + bias
    assert 0.005 < relative_error(result, truth) < 0.04
    exact = quantize(x).dequantized().double() @ quantize(weight).dequantized().double().T + bias
    assert relative_error(result, exact) < 1e-5


def test_fp8_product_of_bfloat16_is_rounded_once() -> None:
    x, weight, bias = noise(2, 3, 64).bfloat16(), noise(16, 64, seed=1).bfloat16(), noise(16, seed=2).bfloat16()
    result = OPS.linear(quantize(x), Linear(quantize(weight), bias))
    exact = quantize(x).dequantized() @ quantize(weight).dequantized().T + bias.float()
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result, exact.bfloat16(), rtol=2**-8, atol=0)


def test_mixed_precisions_are_an_error() -> None:
    x, weight = noise(1, 2, 8), noise(4, 8)
    with pytest.raises(TypeError, match="both be quantized"):
        OPS.linear(x, Linear(quantize(weight), None))
    with pytest.raises(TypeError, match="both be quantized"):
        OPS.linear(quantize(x), Linear(weight, None))


def test_emulation_has_its_own_kernel_kind() -> None:
    assert PortableOps(precision="fp8").kernel == "emulated"
    assert PortableOps().kernel == "portable"
