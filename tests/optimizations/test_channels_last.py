"""The VAE's weights change their strides and nothing else, and get back exactly the strides they had."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.techniques.fused_vae import ChannelsLast
from tests.pipelines import small_pipeline


def _strides(vae: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: weight.stride() for name, weight in vae.named_parameters()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layout_of_the_user_is_restored(layout: Any) -> None:
    pipe = small_pipeline()
    pipe.vae.to(memory_format=layout)
    before, values = _strides(pipe.vae), {name: weight.clone() for name, weight in pipe.vae.named_parameters()}
    with accelerate(pipe, [ChannelsLast()], quiet=True):
        weights = [weight for weight in pipe.vae.parameters() if weight.dim() == 4]
        assert weights
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
        assert all(torch.equal(weight, values[name]) for name, weight in pipe.vae.named_parameters())
    assert _strides(pipe.vae) == before


def test_precision_and_values_stay() -> None:
    layers = [torch.nn.Conv2d(2, 3, 3), torch.nn.Linear(2, 2), torch.nn.Conv2d(3, 4, 1)]
    vae = torch.nn.ModuleList(layers).to(torch.bfloat16)
    before = {name: weight.clone() for name, weight in vae.named_parameters()}
    strides = _strides(vae)
    with ExitStack() as undo:
        assert ChannelsLast().apply(SimpleNamespace(vae=vae), undo) == {"weights": 2}
        assert vae[0].weight.stride() == (18, 1, 6, 2)
    assert _strides(vae) == strides
    for name, weight in vae.named_parameters():
        assert weight.dtype == weight.data.dtype == torch.bfloat16
        assert torch.equal(weight, before[name])


def test_pipeline_without_a_vae_has_nothing_to_change() -> None:
    assert ChannelsLast().apply(SimpleNamespace(vae=None), ExitStack()) == {"weights": 0}


def test_weights_stay_where_they_are() -> None:
    weight = torch.nn.Conv2d(2, 3, 3, device="meta").weight
    with ExitStack() as undo:
        ChannelsLast().apply(SimpleNamespace(vae=torch.nn.ParameterList([weight])), undo)
        assert weight.is_meta
        assert weight.stride() == (18, 1, 6, 2)
    assert weight.is_meta
    assert weight.stride() == (18, 9, 3, 1)
