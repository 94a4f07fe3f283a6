"""Scales that are known before the numbers: no input exceeds them, and float8 keeps its accuracy with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kontext_fast.engine.attention.base import AttentionKernel
from kontext_fast.engine.attention.pytorch import NATIVE
from kontext_fast.engine.ops import (
    E4M3_MAX,
    Activations,
    Attend,
    JointQKV,
    Linear,
    PortableOps,
    Precision,
    Quantized,
    quantize,
)
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

    def attention(self, joint: JointQKV, into: Tensor | None = None) -> Tensor:
        scales = self._scales[next(self._block)]
        # The queries of the last block are fewer.
        largest = [part.float().abs().amax((1, 2, 3)) for part in (joint.query, joint.key, joint.value)]
        self.shares.append(torch.stack(largest) / (scales * E4M3_MAX))
        return super().attention(joint, into)


class RecordingMLPs(PortableOps):
    """The same of what is rounded with static scales: inputs of MLPs and their results."""

    def __init__(self) -> None:
        super().__init__(precision="fp8")
        self.shares: list[float] = []

    def norm_modulate(
        self, x: Tensor, shift: Tensor, scale: Tensor, *, quantize: bool, static: Tensor | None = None
    ) -> Activations:
        return self._noted(super().norm_modulate(x, shift, scale, quantize=quantize, static=static), static)

    def linear_gelu(
        self, x: Activations, layer: Linear, *, quantize: bool, static: Tensor | None = None
    ) -> Activations:
        return self._noted(super().linear_gelu(x, layer, quantize=quantize, static=static), static)

    def join_linear_gelu(
        self, attend: Attend, x: Activations, layer: Linear, *, quantize: bool, static: Tensor | None = None
    ) -> Activations:
        return self._noted(super().join_linear_gelu(attend, x, layer, quantize=quantize, static=static), static)

    def _noted(self, result: Activations, static: Tensor | None) -> Activations:
        if static is not None and isinstance(result, Quantized):
            self.shares.append(float(result.values.float().abs().max()) / E4M3_MAX)  # 1 or NaN where it overflows
        return result


PER_SAMPLE = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance")


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


@pytest.mark.parametrize("factor", [1.0, 1e6])
@pytest.mark.parametrize("name", [*SHAPES, "tiny"])
def test_no_input_exceeds_the_scales_of_mlps(name: str, factor: float) -> None:
    transformer = tiny_transformer() if name == "tiny" else random_transformer(SHAPES[name])
    inputs = _outliers(inputs_for(transformer, batch=2), 1, factor)
    ops = RecordingMLPs()
    with ExitStack() as undo:
        engine = EngineTransformer(take_weights(transformer, "fp8", undo), ops)
        doubles, singles = len(engine.weights.doubles), len(engine.weights.singles)
        stepped(engine, prepare(engine, inputs), inputs)
    assert len(ops.shares) == 2 * (2 * doubles + singles)
    shares = torch.tensor(ops.shares)
    assert shares.max() < 1
    assert shares.min() > 2**-9


def _large_values(transformer: Any) -> None:
    for block in transformer.single_transformer_blocks:
        block.attn.to_v.weight *= 1e3


def _large_modulations_of_mlps(transformer: Any) -> None:
    for block in transformer.transformer_blocks:
        for layer in (block.norm1.linear, block.norm1_context.linear):
            layer.bias.view(6, -1)[4] += 1e3


@pytest.mark.parametrize("enlarge", [_large_values, _large_modulations_of_mlps])
def test_what_alone_is_large_fits_the_scales(enlarge: Callable[[Any], None]) -> None:
    transformer = random_transformer(SHAPES["both-kinds"])
    enlarge(transformer)
    inputs, ops = inputs_for(transformer), RecordingMLPs()
    with ExitStack() as undo:
        engine = EngineTransformer(take_weights(transformer, "fp8", undo), ops)
        stepped(engine, prepare(engine, inputs), inputs)
    assert 2**-9 < max(ops.shares) < 1


def test_static_scales_of_mlps_err_as_scales_of_rows_do() -> None:
    class OfRows(PortableOps):
        def has_static_scales(self, device: torch.device) -> bool:
            return False

    transformer = tiny_transformer()
    inputs = inputs_for(transformer, batch=2, image=(6, 8), reference=(6, 8))

    def velocity(ops: PortableOps, precision: Precision) -> Tensor:
        with ExitStack() as undo:
            engine = EngineTransformer(take_weights(transformer, precision, undo), ops)
            return stepped(engine, prepare(engine, inputs), inputs)

    exact = velocity(PortableOps(), "bf16")
    static, of_rows = (relative_error(velocity(ops(precision="fp8"), "fp8"), exact) for ops in (PortableOps, OfRows))
    assert 0.8 * of_rows < static < 1.2 * of_rows


def test_sample_does_not_depend_on_others() -> None:
    transformer = random_transformer(SHAPES["both-kinds"])
    inputs = _outliers(inputs_for(transformer, batch=2), 1, 1.0)
    inputs["pooled_projections"][1] *= 50  # which modulates by other factors
    alone = {name: value[1:] if name in PER_SAMPLE else value for name, value in inputs.items()}
    with ExitStack() as undo:
        ops = PortableOps(precision="fp8")
        engine = EngineTransformer(take_weights(transformer, "fp8", undo), ops)
        both, prepared = (prepare(engine, each) for each in (inputs, alone))
        assert both.mlp_scales is not None
        assert prepared.mlp_scales is not None
        assert not torch.equal(both.mlp_scales[..., :1, :], both.mlp_scales[..., 1:, :])
        assert torch.equal(both.mlp_scales[..., 1:, :], prepared.mlp_scales)
        together, of_one = stepped(engine, both, inputs), stepped(engine, prepared, alone)
    assert relative_error(together[1:], of_one) < 1e-2


def test_matrix_with_scales_of_rows_is_rounded_by_rows() -> None:
    """As one of a float8 file may have them."""
    transformer = random_transformer(SHAPES["both-kinds"])
    inputs, ops = inputs_for(transformer), RecordingMLPs()
    with ExitStack() as undo:
        sources = take_weights(transformer, "bf16", undo).sources
        rounded = sources.quantizer("fp8")

        def quantizer(name: str, parts: Sequence[Tensor]) -> Quantized:
            return quantize(torch.cat(list(parts))) if name == "single.0.mlp_in" else rounded(name, parts)

        engine = EngineTransformer(take_weights(transformer, "fp8", undo, quantizer=quantizer), ops)
        stepped(engine, prepare(engine, inputs), inputs)
    shape = SHAPES["both-kinds"]
    assert len(ops.shares) == 2 * (2 * shape.double + shape.single - 1)
