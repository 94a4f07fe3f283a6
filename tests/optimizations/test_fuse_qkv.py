"""Fusing keeps one copy of the weights, and refuses what it would bypass."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.parametrize
from torch.overrides import TorchFunctionMode

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.patching import group_hook
from kontext_fast.optimizations.techniques.fuse_qkv import FuseQKV, _fuse, _joined
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
        with pytest.raises(InvalidInput) as caught:
            render(pipe)
        assert str(caught.value) == (
            "fuse_qkv would bypass the LoRA adapter on to_q; revert the acceleration and accelerate again, which "
            "merges it, or leave fuse_qkv out."
        )
    stock = render(pipe, steps=1)
    # The remedy.
    with accelerate(pipe, [FuseQKV()], quiet=True):
        np.testing.assert_allclose(render(pipe, steps=1), stock, rtol=0, atol=1e-4)


def test_converting_afterwards_is_refused_and_reverts(pipe: Any) -> None:
    with accelerate(pipe, [FuseQKV()], quiet=True):
        pipe.transformer.to(torch.float64)
        with pytest.raises(InvalidInput) as caught:
            render(pipe)
    assert str(caught.value) == (
        "The transformer was moved or converted after fuse_qkv was applied; revert the acceleration, move the "
        "pipeline, then accelerate again."
    )
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
    with pytest.raises(InvalidInput) as caught:
        accelerate(pipe, [FuseQKV()], quiet=True)
    assert str(caught.value) == (
        "The transformer's projections are fused already; call pipe.transformer.unfuse_qkv_projections() first."
    )
    assert hasattr(pipe.transformer.transformer_blocks[0].attn, "to_qkv")


class ScaledLinear(torch.nn.Linear):
    """No plain linear layer."""


class Quantized(torch.Tensor):
    pass


def _scale(attention: Any) -> None:
    attention.add_k_proj = ScaledLinear(2, 2)


def _quantize(attention: Any) -> None:
    attention.to_v.weight = torch.nn.Parameter(attention.to_v.weight.data.as_subclass(Quantized), requires_grad=False)


def _parametrize(attention: Any) -> None:
    torch.nn.utils.parametrize.register_parametrization(attention.to_k, "bias", torch.nn.Identity())


def _hook(attention: Any) -> None:
    attention.add_q_proj.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_scale, "fuse_qkv needs plain linear layers, but add_k_proj is a ScaledLinear; leave it out."),
        (
            _quantize,
            "fuse_qkv needs plain weights, but that of to_v is a Quantized; leave it out (of classic, the preset "
            "first_block_cache is left).",
        ),
        (
            _parametrize,
            "to_k.bias has a parametrization, which fuse_qkv would ignore; take it off "
            '(torch.nn.utils.parametrize.remove_parametrizations(module, "bias")), then accelerate again.',
        ),
        (
            _hook,
            "add_q_proj has a forward hook, which fuse_qkv would ignore; remove it (handle.remove()), then accelerate "
            "again.",
        ),
    ],
)
def test_projection_that_is_not_plain_is_refused_by_name(pipe: Any, change: Any, complaint: str) -> None:
    change(pipe.transformer.transformer_blocks[0].attn)
    with pytest.raises(InvalidInput) as caught:
        accelerate(pipe, [FuseQKV()], quiet=True)
    assert str(caught.value) == complaint


def test_group_offloading_is_followed_without_a_stream_alone(pipe: Any) -> None:
    cpu, options = torch.device("cpu"), {"offload_type": "block_level", "num_blocks_per_group": 1}
    stock = render(pipe)
    pipe.transformer.enable_group_offload(cpu, cpu, **options)
    with accelerate(pipe, [FuseQKV()], quiet=True) as acceleration:
        assert acceleration.facts["fuse_qkv"] == {"projections": 3}
        np.testing.assert_allclose(render(pipe), stock, rtol=0, atol=1e-4)
    group_hook(pipe.transformer.transformer_blocks[0]).group.stream = object()  # as on a GPU
    with pytest.raises(InvalidInput) as caught:
        accelerate(pipe, [FuseQKV()], quiet=True)
    assert str(caught.value) == (
        "Group offloading with a stream knows no weights that are joined later, as fuse_qkv joins them; use "
        "accelerate(pipe, 'faithful'), or enable it without use_stream."
    )


def test_projections_without_biases_are_fused(pipe: Any) -> None:
    for block in (*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks):
        for name in ("to_q", "to_k", "to_v"):
            getattr(block.attn, name).bias = None
    stock = render(pipe)
    with accelerate(pipe, [FuseQKV()], quiet=True):
        assert pipe.transformer.transformer_blocks[0].attn.to_qkv.bias is None
        pipe.transformer._apply(torch.clone)
        np.testing.assert_allclose(render(pipe), stock, rtol=0, atol=1e-4)


class Attended(torch.nn.Module):
    """An attention as far as its projections are concerned, which are of several widths here."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (torch.nn.Linear(4, width, bias) for width in (4, 2, 3))


def unchanged(_: list[Any]) -> None:
    pass


def moved(layers: list[Any]) -> None:
    for layer in layers:
        layer._apply(torch.clone)


def weight_changed(layers: list[Any]) -> None:
    moved(layers)
    layers[2].weight.data[-1, -1] += 1


def bias_changed(layers: list[Any]) -> None:
    moved(layers)
    layers[1].bias.data[0] += 1


def one_converted(layers: list[Any]) -> None:
    moved(layers)
    layers[1].to(torch.float64)


def one_elsewhere(layers: list[Any]) -> None:
    moved(layers)
    layers[2].weight = torch.nn.Parameter(layers[2].weight.to("meta"))


@pytest.mark.parametrize(
    ("change", "bias", "joined"),
    [
        (unchanged, True, True),
        (moved, True, True),
        (moved, False, True),
        (weight_changed, True, False),
        (bias_changed, True, False),
        (one_converted, False, False),
        (one_elsewhere, True, False),
    ],
)
def test_weights_are_joined_again_where_they_have_the_same_bits(change: Any, bias: bool, joined: bool) -> None:
    attention, x = Attended(bias), torch.rand(2, 4)
    expected = torch.cat([layer(x) for layer in attention.children()], -1)
    random = torch.get_rng_state()
    with ExitStack() as undo:
        fused, layers = _fuse(attention, "to_qkv", ("to_q", "to_k", "to_v"), undo)
        assert torch.equal(torch.get_rng_state(), random)  # a latent that is drawn next is what it would have been
        assert attention.to_qkv is fused
        change(layers)
        assert _joined(fused, layers) == joined
        storages = {one.untyped_storage().data_ptr() for layer in layers for one in layer.parameters()}
        wholes = {one.untyped_storage().data_ptr() for one in fused.buffers()}
        assert (storages == wholes) == joined
        torch.testing.assert_close(fused(x), expected)
    assert not hasattr(attention, "to_qkv")


def test_projection_that_somebody_took_off_is_not_missed() -> None:
    attention = Attended(bias=True)
    with ExitStack() as undo:
        _fuse(attention, "to_qkv", ("to_q", "to_k", "to_v"), undo)
        del attention.to_qkv  # as diffusers' unfuse_qkv_projections
    assert [name for name, _ in attention.named_children()] == ["to_q", "to_k", "to_v"]
