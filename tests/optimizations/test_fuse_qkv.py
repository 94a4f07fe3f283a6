"""Fusing keeps one copy of the weights, and refuses what it would bypass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.techniques.fuse_qkv import FuseQKV
from tests.pipelines import render, small_pipeline


@pytest.fixture
def pipe() -> Any:
    return small_pipeline()


def _allocated(transformer: torch.nn.Module) -> int:
    tensors = [*transformer.parameters(), *transformer.buffers()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def test_fused_weights_share_memory(pipe: Any) -> None:
    before, keys = _allocated(pipe.transformer), list(pipe.transformer.state_dict())
    with accelerate(pipe, [FuseQKV()], quiet=True):
        assert _allocated(pipe.transformer) == before
        assert list(pipe.transformer.state_dict()) == keys
    assert _allocated(pipe.transformer) == before


class CountsProducts(TorchFunctionMode):
    """Counts linear maps with a weight of one of `layers`."""

    def __init__(self, layers: list[torch.nn.Module]) -> None:
        super().__init__()
        self.weights = {id(layer.weight) for layer in layers}
        self.products = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += func is torch.nn.functional.linear and id(args[1]) in self.weights
        return func(*args, **(kwargs or {}))


def test_three_products_become_one(pipe: Any) -> None:
    attention = pipe.transformer.transformer_blocks[0].attn
    names = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")

    def products(*layers: str) -> int:
        with CountsProducts([getattr(attention, name) for name in layers]) as count:
            render(pipe, steps=1)
        return count.products

    assert products(*names) == 6
    with accelerate(pipe, [FuseQKV()], quiet=True):
        assert products(*names) == 0
        assert products("to_qkv", "to_added_qkv") == 2
    assert products(*names) == 6


def test_parameters_keep_identity_and_requires_grad(pipe: Any) -> None:
    layer = pipe.transformer.transformer_blocks[0].attn.to_k
    layer.weight.requires_grad_(False)
    weight, bias = layer.weight, layer.bias
    with accelerate(pipe, [FuseQKV()], quiet=True):
        assert layer.weight is weight
    assert layer.weight is weight
    assert layer.bias is bias
    assert not layer.weight.requires_grad
    assert layer.bias.requires_grad


def test_lora_on_the_projections_is_merged_or_refused(pipe: Any) -> None:
    from peft import LoraConfig

    with accelerate(pipe, [FuseQKV()], quiet=True):
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
        with pytest.raises(InvalidInput, match="LoRA"):
            render(pipe)
    stock = render(pipe, steps=1)
    # The remedy.
    with accelerate(pipe, [FuseQKV()], quiet=True):
        np.testing.assert_allclose(render(pipe, steps=1), stock, rtol=0, atol=1e-4)


def test_converting_afterwards_is_refused_and_reverts(pipe: Any) -> None:
    with accelerate(pipe, [FuseQKV()], quiet=True):
        pipe.transformer.to(torch.float64)
        with pytest.raises(InvalidInput, match="moved or converted"):
            render(pipe)
    pipe.transformer.to(torch.float32)
    np.testing.assert_array_equal(render(pipe), render(small_pipeline()))


def test_moving_afterwards_as_offloading_does_is_followed(pipe: Any) -> None:
    before = _allocated(pipe.transformer)
    with accelerate(pipe, [FuseQKV()], quiet=True):
        expected = render(pipe)
        for _ in range(2):
            pipe.transformer._apply(torch.clone)
            assert _allocated(pipe.transformer) > before
            np.testing.assert_array_equal(render(pipe), expected)
            assert _allocated(pipe.transformer) == before
        pipe.transformer._apply(torch.clone)
        pipe.transformer.transformer_blocks[0].attn.to_k.weight.data += 1e-3
        with pytest.raises(InvalidInput, match="moved or converted"):
            render(pipe)


def test_projections_fused_already_are_refused(pipe: Any) -> None:
    pipe.transformer.fuse_qkv_projections()
    with pytest.raises(InvalidInput, match="unfuse_qkv_projections"):
        accelerate(pipe, [FuseQKV()], quiet=True)
    assert hasattr(pipe.transformer.transformer_blocks[0].attn, "to_qkv")
