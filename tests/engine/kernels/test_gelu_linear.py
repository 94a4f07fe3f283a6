"""Products that activate what they write: the library's on a GPU, and what is told to it anywhere."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kontext_fast.engine.kernels import gelu_linear as module
from kontext_fast.engine.kernels.gelu_linear import gelu_linear, rounds_to_e4m3
from kontext_fast.engine.ops import Linear, PortableOps, Quantized, quantize_whole
from kontext_fast.errors import KontextError
from tests import needs
from tests.engine.kernels.oracle import DEVICE, fused, noise, portable

SHAPES = pytest.mark.parametrize(("batch", "rows", "shared", "out"), [(1, 1, 96, 384), (2, 77, 160, 640)])


def _layer(shared: int, out: int) -> Linear:
    return Linear(
        noise(out, shared, dtype=torch.bfloat16, seed=1) * (shared**-0.5 / 8), noise(out, dtype=torch.bfloat16, seed=2)
    )


def _on_device(layer: Linear) -> Linear:
    weight = layer.weight
    moved = (
        Quantized(weight.values.to(DEVICE), weight.scale.to(DEVICE), weight.dtype)
        if isinstance(weight, Quantized)
        else weight.to(DEVICE)
    )
    assert layer.bias is not None
    return Linear(moved, layer.bias.to(DEVICE))


@needs.gpu
@pytest.mark.parametrize("beside", [0, 48])
@SHAPES
def test_bfloat16_product_is_activated_and_rounded_once(
    batch: int, rows: int, shared: int, out: int, beside: int
) -> None:
    x, layer = noise(batch, rows, shared, dtype=torch.bfloat16), _layer(shared, out)
    assert isinstance(layer.weight, Tensor)
    assert layer.bias is not None
    truth = functional.gelu(
        functional.linear(x.double(), layer.weight.double(), layer.bias.double()), approximate="tanh"
    )
    result = gelu_linear(x.to(DEVICE), _on_device(layer), beside=beside).cpu()
    assert result.shape == (batch, rows, beside + out)
    assert result[..., :beside].isnan().all(), "wrote beside what it gives"
    assert float((result[..., beside:] - truth).norm() / truth.norm()) < 2**-8


@needs.gpu
@pytest.mark.parametrize("beside", [0, 48])
@pytest.mark.parametrize("aligned", [True, False])
@SHAPES
def test_e4m3_product_rounds_by_the_scale_of_its_sample(
    batch: int, rows: int, shared: int, out: int, aligned: bool, beside: int
) -> None:
    if not rounds_to_e4m3(torch.device(DEVICE)):
        pytest.skip("needs a GPU with float8: run `make test` on a machine with one")
    static = torch.tensor([[4.0, 8.0], [2.0, 4.0], [0.5, 0.25]])[:, :batch]
    scale = static[0, :, None, None].expand(batch, rows, 1).contiguous()
    plain = _layer(shared, out)
    assert isinstance(plain.weight, Tensor)
    x = Quantized((noise(batch, rows, shared) / scale).to(torch.float8_e4m3fn), scale, torch.bfloat16)
    layer = Linear(quantize_whole(plain.weight), plain.bias)
    wanted = PortableOps(precision="fp8").linear_gelu(x, layer, quantize=True, static=static)
    assert isinstance(wanted, Quantized)
    places = torch.zeros(3, batch, 4 if aligned else 1, device=DEVICE)
    places[..., 0] = static
    moved = Quantized(x.values.to(DEVICE), x.scale.to(DEVICE), x.dtype)
    result = gelu_linear(moved, _on_device(layer), static=places[..., 0], beside=beside).cpu()[..., beside:].float()
    # Numbers that lie between two of e4m3 may round to either.
    assert (result == wanted.values.float()).double().mean() > 0.9
    assert float((result - wanted.values.float()).norm() / wanted.values.float().norm()) < 0.02


@needs.gpu
def test_product_runs_in_a_graph() -> None:
    x, layer = noise(1, 32, 96, dtype=torch.bfloat16).to(DEVICE), _on_device(_layer(96, 384))
    expected = gelu_linear(x, layer)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = gelu_linear(x, layer)
    graph.replay()
    assert torch.equal(result, expected)


def test_other_devices_round_by_rows() -> None:
    assert not rounds_to_e4m3(torch.device("cpu"))


def test_missing_library_is_an_error_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    module._library.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(KontextError, match=r"libcublasLt\.so\.\d+, which PyTorch brings, cannot be loaded"):
        module._library()


def test_result_of_the_library_is_laid_out_as_in_its_header() -> None:
    """cublasLtMatmulHeuristicResult_t of cublasLt.h: an algorithm of 64 bytes, then what is read."""
    offsets = {name: getattr(module._Choice, name).offset for name, _ in module._Choice._fields_}
    assert offsets == {"algorithm": 0, "workspace": 64, "status": 72, "waves": 76, "reserved": 80}
    assert ctypes.sizeof(module._Choice) == 96


def test_attention_writes_beside_a_product_that_activates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's product on a GPU, in bfloat16; elsewhere what stands in for it, in float32."""
    from kontext_fast.engine.kernels import fused as fused_module

    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    x, attended = (noise(2, 5, 96, dtype=dtype, seed=seed).to(DEVICE) for seed in (0, 3))
    layer = _on_device(_layer(96, 384))
    layer = Linear(layer.weight.to(dtype), layer.bias.to(dtype))  # type: ignore[union-attr]
    if DEVICE == "cpu":
        monkeypatch.setattr(fused_module, "_activates", lambda x, layer: True)
    asked: list[Tensor] = []

    def attend(into: Tensor) -> Tensor:
        asked.append(into)
        return into.copy_(attended)

    result = fused().join_linear_gelu(attend, x, layer, quantize=False)
    assert isinstance(result, Tensor)
    assert asked[0].data_ptr() == result.data_ptr()
    assert torch.equal(result[..., :96], attended)
    expected = portable.join_linear_gelu(lambda: attended, x, layer, quantize=False)
    assert isinstance(expected, Tensor)
    # The portable operations round the product in bfloat16 before its GELU, and the library does not.
    assert float((result.double() - expected.double()).norm() / expected.double().norm()) < 2**-7
