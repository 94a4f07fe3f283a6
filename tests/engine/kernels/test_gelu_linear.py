"""Products that activate what they write: the library's on a GPU, and what is told to it anywhere."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kontext_fast.engine.kernels import gelu_linear as module
from kontext_fast.engine.kernels.gelu_linear import gelu_linear
from kontext_fast.engine.ops import Linear
from kontext_fast.errors import KontextError
from tests import needs
from tests.engine.kernels.oracle import DEVICE, fused, noise, portable

SHAPES = pytest.mark.parametrize(("batch", "rows", "shared", "out"), [(1, 1, 96, 384), (2, 77, 160, 640)])


def _layer(shared: int, out: int) -> Linear:
    return Linear(
        noise(out, shared, dtype=torch.bfloat16, seed=1) * (shared**-0.5 / 8), noise(out, dtype=torch.bfloat16, seed=2)
    )


def _on_device(layer: Linear) -> Linear:
    assert isinstance(layer.weight, Tensor)
    assert layer.bias is not None
    return Linear(layer.weight.to(DEVICE), layer.bias.to(DEVICE))


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
def test_product_runs_in_a_graph() -> None:
    x, layer = noise(1, 32, 96, dtype=torch.bfloat16).to(DEVICE), _on_device(_layer(96, 384))
    expected = gelu_linear(x, layer)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = gelu_linear(x, layer)
    graph.replay()
    assert torch.equal(result, expected)


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


def test_attention_writes_beside_what_is_activated(monkeypatch: pytest.MonkeyPatch) -> None:
    from kontext_fast.engine.kernels import fused as fused_module

    x, layer, attended = noise(2, 5, 96), _layer(96, 384), noise(2, 5, 96, seed=3)
    layer = Linear(layer.weight.float(), layer.bias.float())  # type: ignore[union-attr]

    def plain(x: Tensor, layer: Linear, *, beside: int = 0) -> Tensor:
        activated = portable.linear_gelu(x, layer, quantize=False)
        assert isinstance(activated, Tensor)
        return torch.cat((torch.full((*x.shape[:-1], beside), torch.nan), activated), dim=-1)

    monkeypatch.setattr(fused_module, "_activates", lambda x, layer: True)
    monkeypatch.setattr(fused_module, "gelu_linear", plain)
    asked: list[Tensor] = []

    def attend(into: Tensor) -> Tensor:
        asked.append(into)
        return into.copy_(attended)

    result = fused().join_linear_gelu(attend, x, layer, quantize=False)
    assert isinstance(result, Tensor)
    assert asked[0].data_ptr() == result.data_ptr()
    torch.testing.assert_close(result, portable.join_linear_gelu(lambda: attended, x, layer, quantize=False))
