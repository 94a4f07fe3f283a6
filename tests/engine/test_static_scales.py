"""Scales that are known before the numbers: no input exceeds them, and attention in float8 keeps its accuracy."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kontext_fast.engine.attention.base import AttentionKernel
from kontext_fast.engine.attention.pytorch import NATIVE
from kontext_fast.engine.ops import E4M3_MAX, JointQKV, PortableOps, Precision
from kontext_fast.engine.transformer import EngineTransformer
from kontext_fast.engine.weights import take_weights
from tests.engine.transformers import (
    SHAPES,
    inputs_for,
    prepare,
    random_transformer,
    relative_error,
    stepped,
    tiny_transformer,
)


def _dequantized(query: Tensor, key: Tensor, value: Tensor, scales: Tensor) -> Tensor:
    parts = (part.float() * scale[:, None, None, None] for part, scale in zip((query, key, value), scales, strict=True))
    return scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts)).transpose(1, 2)


EMULATED = AttentionKernel("emulated", _dequantized, devices=("cpu",), effect="lossy", quantized=True)


class Recording(PortableOps):
    """Attention in full precision that notes how much of the range of e4m3 each call would use."""

    def __init__(self, scales: Tensor) -> None:
        super().__init__()
        self._scales = scales
        self._block = count()
        self.shares: list[Tensor] = []

    def attention(self, joint: JointQKV) -> Tensor:
        scales = self._scales[next(self._block)]
        parts = joint.query, joint.key, joint.value
        largest = torch.stack([part.float().abs().amax((1, 2, 3)) for part in parts])
        self.shares.append(largest / (scales * E4M3_MAX))
        return super().attention(joint)


def _outliers(inputs: dict[str, Any], channel: int, factor: float) -> dict[str, Any]:
    hidden = inputs["hidden_states"].clone()
    hidden[..., channel] *= factor
    return {**inputs, "hidden_states": hidden}


@pytest.mark.parametrize("factor", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("name", [*SHAPES, "tiny"])
def test_no_input_exceeds_the_scales(name: str, factor: float) -> None:
    transformer = tiny_transformer() if name == "tiny" else random_transformer(SHAPES[name])
    inputs = _outliers(inputs_for(transformer, batch=2), 1, factor)
    with ExitStack() as undo:
        weights = take_weights(transformer, "bf16", undo)
        scales = prepare(EngineTransformer(weights, PortableOps(EMULATED)), inputs).scales
        assert scales is not None
        recording = Recording(scales[1])
        engine = EngineTransformer(weights, recording)
        stepped(engine, prepare(engine, inputs), inputs)
    assert len(recording.shares) == len(scales[1])
    shares = torch.stack(recording.shares)
    assert shares.max() <= 1
    # Nor are they so loose that numbers would sink below the 2^15 that e4m3 spans.
    assert shares.min() > 2**-9


def test_float8_attention_errs_as_float8_products_do() -> None:
    transformer = tiny_transformer()
    inputs = inputs_for(transformer, batch=2)

    def velocity(ops: PortableOps, precision: Precision) -> Tensor:
        with ExitStack() as undo:
            engine = EngineTransformer(take_weights(transformer, precision, undo), ops)
            return stepped(engine, prepare(engine, inputs), inputs)

    exact = velocity(PortableOps(), "bf16")
    attention, products, both = (
        relative_error(velocity(PortableOps(kernel, precision=precision), precision), exact)
        for kernel, precision in ((EMULATED, "bf16"), (NATIVE, "fp8"), (EMULATED, "fp8"))
    )
    assert 1e-3 < attention < 1.5 * products
    assert both < 2 * products


def test_scales_are_powers_of_two_per_block_and_step() -> None:
    transformer = random_transformer(SHAPES["both-kinds"])
    with ExitStack() as undo:
        engine = EngineTransformer(take_weights(transformer, "bf16", undo), PortableOps(EMULATED))
        prepared = prepare(engine, inputs_for(transformer, batch=2), timesteps=(0.9, 0.8))
    assert prepared.scales is not None
    assert prepared.scales.shape == (3, 4, 3, 2)  # steps, blocks, parts, samples
    assert torch.equal(prepared.scales, torch.exp2(prepared.scales.log2().round()))
    # Values follow the modulation of their step, query and key the weights alone.
    assert torch.equal(prepared.scales[0, :, :2], prepared.scales[2, :, :2])
