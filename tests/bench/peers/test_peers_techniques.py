"""Techniques of peers other than caches (compilation, fusion, kernels, quantization), as far as a CPU can run them."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from kontext_fast.bench.peers.recipes.diffusers import GPU_BASE
from kontext_fast.bench.peers.techniques.cache_dit import CacheDit
from kontext_fast.bench.peers.techniques.compile import CompiledBlocks, RegionalCompile, WholeCompile
from kontext_fast.bench.peers.techniques.cudnn_attention import CudnnAttention
from kontext_fast.bench.peers.techniques.diffusers_first_block_cache import DiffusersFirstBlockCache
from kontext_fast.bench.peers.techniques.diffusers_fused_qkv import DiffusersFusedQkv
from kontext_fast.bench.peers.techniques.diffusers_magcache import DiffusersMagCache
from kontext_fast.bench.peers.techniques.flash_attention_3_fp8 import FlashAttention3Fp8
from kontext_fast.bench.peers.techniques.torchao_float8 import TorchaoFloat8, cannot_revert
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import Acceleration, apply_plan
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.presets import Plan
from tests import needs
from tests.contract.test_optimizations_contract import _traces
from tests.pipelines import render, small_pipeline

GRAPHS = 3
"""Graphs of four blocks: one per class, and one more for later single blocks, whose inputs are slices of a joint
tensor."""


@pytest.fixture
def pipe() -> Any:
    pipe = small_pipeline(2, 2)
    render(pipe, steps=1)
    return pipe


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs that torch.compile captures; they run uncompiled, so that no test waits for a compiler."""
    captured: list[Any] = []
    compile_ = torch.compile

    def backend(graph: Any, _inputs: Any) -> Any:
        captured.append(graph)
        return graph.forward

    def capture(model: Any, *, fullgraph: bool, mode: str | None = None) -> Any:
        return compile_(model, fullgraph=fullgraph, backend=backend)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", capture)
    return captured


def applied(pipe: Any, *optimizations: Optimization) -> Acceleration:
    """The optimizations applied on this machine, whether or not it supports them."""
    return apply_plan(Plan("test", optimizations), pipe)


@pytest.mark.parametrize("technique", [RegionalCompile(), CompiledBlocks()], ids=lambda technique: technique.name)
def test_blocks_of_one_class_share_graphs(technique: Optimization, pipe: Any, graphs: list[Any]) -> None:
    untouched, before = render(pipe), _traces(pipe)
    with applied(pipe, technique) as acceleration:
        np.testing.assert_allclose(render(pipe), untouched, rtol=0, atol=1e-5)
        assert acceleration.last_step_kinds() == ["full"] * 4
    assert len(graphs) == GRAPHS
    assert _traces(pipe) == before
    np.testing.assert_array_equal(render(pipe), untouched)


def test_whole_compile_is_one_graph_and_restores_flags(pipe: Any, graphs: list[Any]) -> None:
    from torch._inductor import config

    untouched, before, flag = render(pipe), _traces(pipe), config.epilogue_fusion
    assert flag
    with applied(pipe, WholeCompile()):
        assert not config.epilogue_fusion
        np.testing.assert_allclose(render(pipe), untouched, rtol=0, atol=1e-5)
    assert config.epilogue_fusion == flag
    assert len(graphs) == 2
    assert any("proj_out" in graph.code and "norm_out" in graph.code for graph in graphs)
    assert _traces(pipe) == before


CACHES = [
    pytest.param(DiffusersFirstBlockCache(threshold=1e9), id="first-block"),
    pytest.param(DiffusersMagCache(threshold=1e9, max_skips=1), id="magcache"),
    pytest.param(CacheDit(first_blocks=1, mask=(1, 1, 0, 1), policy="static"), id="cache-dit", marks=needs.cache_dit),
]


@pytest.mark.parametrize("cache", CACHES)
def test_cache_above_compiled_blocks_skips_the_same_steps(cache: Optimization, pipe: Any, graphs: list[Any]) -> None:
    with applied(pipe, cache) as acceleration:
        eager, kinds = render(pipe), acceleration.last_step_kinds()
    before = _traces(pipe)
    with applied(pipe, CompiledBlocks(), cache) as acceleration:
        np.testing.assert_allclose(render(pipe), eager, rtol=0, atol=1e-5)
        assert acceleration.last_step_kinds() == kinds
        assert "skipped" in kinds
    assert len(graphs) == GRAPHS
    assert _traces(pipe) == before


def test_fused_projections_of_diffusers_are_reverted(pipe: Any) -> None:
    untouched, before = render(pipe), _traces(pipe)
    with applied(pipe, DiffusersFusedQkv()):
        assert all(block.attn.fused_projections for block in pipe.transformer.transformer_blocks)
        np.testing.assert_allclose(render(pipe), untouched, rtol=0, atol=1e-5)
    assert _traces(pipe) == before
    np.testing.assert_array_equal(render(pipe), untouched)


def test_cudnn_attention_is_set_and_reverted(pipe: Any) -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    before = [dict(vars(processor)) for processor in pipe.transformer.attn_processors.values()]
    active = _AttentionBackendRegistry.get_active_backend()[0]
    with applied(pipe, CudnnAttention()):
        chosen = {processor._attention_backend for processor in pipe.transformer.attn_processors.values()}
        assert chosen == {AttentionBackendName._NATIVE_CUDNN}
    assert [dict(vars(processor)) for processor in pipe.transformer.attn_processors.values()] == before
    assert _AttentionBackendRegistry.get_active_backend()[0] == active


@pytest.mark.parametrize("with_log_sum_exp", [False, True])
def test_float8_attention_gets_float8_inputs_and_is_reverted(
    with_log_sum_exp: bool, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel is that of torch; everything around it is what a Hopper GPU runs."""
    seen = []

    def flash_attn_func(*parts: torch.Tensor) -> Any:
        seen.append({part.dtype for part in parts})
        query, key, value = (part.float().transpose(1, 2) for part in parts)
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        return (output.bfloat16(), None) if with_log_sum_exp else output.bfloat16()

    interface = ModuleType("flash_attn_interface")
    interface.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn_interface", interface)

    untouched, before = render(pipe), _traces(pipe)
    with applied(pipe, FlashAttention3Fp8()):
        images = render(pipe)
        with applied(small_pipeline(1, 1), DiffusersFusedQkv(), FlashAttention3Fp8()) as other:
            assert other.facts["flash_attention_3_fp8"] == {}
    assert seen == [{torch.float8_e4m3fn}] * 16
    assert 0 < np.abs(images - untouched).mean() < 0.02
    assert _traces(pipe) == before
    np.testing.assert_array_equal(render(pipe), untouched)


def test_irreversible_technique_raises_but_hides_no_error() -> None:
    undo = ExitStack()
    cannot_revert("example", undo)
    with pytest.raises(InvalidInput, match="example cannot be reverted; load the checkpoint again"):
        undo.close()

    def fail() -> None:
        with ExitStack() as undo:
            cannot_revert("example", undo)
            raise RuntimeError("the failure")

    with pytest.raises(RuntimeError, match="the failure"):
        fail()


@needs.torchao
@pytest.mark.parametrize("granularity", ["row", "tensor"])
def test_float8_quantizes_all_weights_and_is_irreversible(granularity: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao quantizes on a CPU if its check of the hardware is disabled."""
    from torchao.quantization import quant_api

    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda granularities: None)
    pipe = small_pipeline(1, 1)
    pipe.transformer.to(torch.bfloat16)
    original = pipe.transformer.proj_out.weight.detach().float()
    acceleration = applied(pipe, TorchaoFloat8(granularity=granularity))
    linear = [module for module in pipe.transformer.modules() if isinstance(module, torch.nn.Linear)]
    assert acceleration.facts["torchao_float8"]["layers"] == len(linear)
    assert all(type(module.weight.data).__name__ == "Float8Tensor" for module in linear)
    weight = pipe.transformer.proj_out.weight
    assert weight.scale.numel() == (original.shape[0] if granularity == "row" else 1)
    torch.testing.assert_close(weight.dequantize().float(), original, rtol=0.07, atol=1e-3)
    with pytest.raises(InvalidInput, match="torchao_float8 cannot be reverted"):
        acceleration.revert()


@needs.torchao
@pytest.mark.parametrize("tunes", [True, False])
def test_coordinate_descent_follows_its_parameter(tunes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config
    from torchao.quantization import quant_api

    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda granularities: None)
    pipe = small_pipeline(1, 1)
    pipe.transformer.to(torch.bfloat16)
    with config.patch(coordinate_descent_tuning=not tunes):
        applied(pipe, TorchaoFloat8(coordinate_descent=tunes))
        assert config.coordinate_descent_tuning is tunes
    (float8,) = (technique for technique in GPU_BASE if isinstance(technique, TorchaoFloat8))
    assert not float8.coordinate_descent
