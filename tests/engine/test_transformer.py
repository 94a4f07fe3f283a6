"""The engine computes what diffusers' transformer computes, for every shape."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from kontext_fast.engine.ops import Precision
from kontext_fast.engine.transformer import EngineTransformer
from tests.engine.transformers import (
    SHAPES,
    Shape,
    engine_on,
    expected,
    inputs_for,
    prepare,
    random_transformer,
    relative_error,
    stepped,
    tiny_transformer,
)

FLOAT32 = 1e-4


@pytest.fixture(scope="module", params=["tiny", *SHAPES])
def transformer(request: pytest.FixtureRequest) -> Any:
    return tiny_transformer() if request.param == "tiny" else random_transformer(SHAPES[request.param])


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"batch": 3},
        {"reference": (0, 0)},
        {"text": 1, "image": (1, 1), "reference": (5, 3)},
        {"batch": 2, "text": 12, "image": (7, 3), "reference": (1, 1)},
    ],
    ids=["edit", "batch", "text-to-image", "one-token", "odd"],
)
def test_float32_output_equals_diffusers(transformer: Any, sizes: dict[str, Any]) -> None:
    inputs = inputs_for(transformer, **sizes)
    truth = expected(transformer, inputs)
    with engine_on(transformer) as engine:
        result = stepped(engine, prepare(engine, inputs), inputs)
    assert result.shape == truth.shape
    assert relative_error(result, truth) < FLOAT32
    assert (result - truth).abs().max() < FLOAT32 * truth.abs().max()


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("batch", [1, 2])
def test_last_block_of_outputs_only_equals_the_whole(
    precision: Precision, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here, with one thread, the bits are equal as well; a product of fewer rows may sum in another order elsewhere."""
    transformer = random_transformer(Shape(heads=4))
    inputs = inputs_for(transformer, batch=batch, text=9, image=(4, 5), reference=(3, 4))
    single, computed = EngineTransformer._single, []

    def of_all(self: Any, weights: Any, joint: Any, rope: Any, stream: Any, modulation: Any, outputs: Any) -> None:
        computed.append(outputs)
        single(self, weights, joint, rope, stream, modulation)

    with engine_on(transformer, precision) as engine:
        prepared = prepare(engine, inputs)
        result = stepped(engine, prepared, inputs)
        monkeypatch.setattr(EngineTransformer, "_single", of_all)
        whole = stepped(engine, prepared, inputs)
    assert computed == [None, slice(9, 29)]
    # A number that is rounded the other way is a step of fp8 or int8 off.
    assert relative_error(result, whole) < {"bf16": 1e-6, "fp8": 5e-3, "int8": 2e-3}[precision]


def test_each_prepared_timestep_has_its_modulation() -> None:
    transformer = random_transformer(Shape())
    inputs = inputs_for(transformer, batch=2)
    timesteps = (0.95, 0.4, 0.1)
    with engine_on(transformer) as engine:
        prepared = prepare(engine, inputs, timesteps=timesteps)
        results = [stepped(engine, prepared, inputs, index) for index in range(len(timesteps))]
    truths = [expected(transformer, inputs | {"timestep": torch.full((2,), value)}) for value in timesteps]
    assert all(relative_error(result, truth) < FLOAT32 for result, truth in zip(results, truths, strict=True))
    assert relative_error(truths[0], truths[1]) > 100 * FLOAT32


def test_bfloat16_errs_no_more_than_diffusers() -> None:
    exact = random_transformer(Shape())
    inputs = inputs_for(exact, batch=2)
    truth = expected(exact, inputs)
    rounded = random_transformer(Shape(), torch.bfloat16)
    low = {name: value if name == "guidance" else value.bfloat16() for name, value in inputs.items()}
    theirs = relative_error(expected(rounded, low), truth)
    with engine_on(rounded) as engine:
        result = stepped(engine, prepare(engine, low), low)
    assert result.dtype == torch.bfloat16
    assert 0 < relative_error(result, truth) < 1.2 * theirs


def test_sample_of_a_batch_equals_the_sample_alone() -> None:
    transformer = random_transformer(Shape())
    inputs = inputs_for(transformer, batch=3)
    with engine_on(transformer) as engine:
        prepared = prepare(engine, inputs)
        together = stepped(engine, prepared, inputs)
        for sample in range(3):
            one = {
                name: value[sample : sample + 1] if value is not None and len(value) == 3 else value
                for name, value in inputs.items()
            }
            alone = stepped(engine, prepare(engine, one), one)
            torch.testing.assert_close(alone, together[sample : sample + 1], rtol=0, atol=1e-4)
    assert relative_error(together[0], together[1]) > 0.1


def _quantized_error(transformer: Any, precision: Precision) -> float:
    inputs = inputs_for(transformer, batch=2)
    truth = expected(transformer, inputs)
    with engine_on(transformer, precision) as engine:
        return relative_error(stepped(engine, prepare(engine, inputs), inputs), truth)


def _with_outliers(transformer: Any) -> Any:
    """`transformer` with one channel of each MLP scaled by 100."""
    for block in transformer.transformer_blocks:
        for layer in (block.ff.net[0].proj, block.ff_context.net[0].proj):
            layer.weight[:1] *= 100
    for block in transformer.single_transformer_blocks:
        block.proj_mlp.weight[:1] *= 100
    return transformer


@pytest.mark.parametrize("outliers", [False, True])
def test_fp8_error_is_that_of_rounding(outliers: bool) -> None:
    """Measured: 0.03 without outlier channels, 0.04 with one channel of each MLP scaled by 100."""
    transformer = random_transformer(Shape(heads=8))
    error = _quantized_error(_with_outliers(transformer) if outliers else transformer, "fp8")
    assert 1e-3 < error < 0.08


def test_int8_errs_less_than_half_as_much_as_fp8() -> None:
    """Measured: 0.012 against 0.032 with random weights, and 0.014 against 0.043 with the bundled checkpoint."""
    for transformer in (random_transformer(Shape(heads=8)), deepcopy(tiny_transformer())):
        assert 1e-3 < _quantized_error(transformer, "int8") < 0.5 * _quantized_error(transformer, "fp8")


def test_int8_with_outliers_errs_no_more_than_fp8() -> None:
    transformer = _with_outliers(random_transformer(Shape(heads=8)))
    assert _quantized_error(transformer, "int8") < _quantized_error(transformer, "fp8")
