"""The VAE's weights change their strides and nothing else, and get back exactly the strides they had."""

from __future__ import annotations

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
