"""What is taken from a transformer, what is refused, and that undoing leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from kontext_fast.engine.ops import PRECISIONS, quantize
from kontext_fast.engine.weights import EngineWeights, as_stored, take_weights
from kontext_fast.errors import InvalidInput
from tests.engine.transformers import Shape, engine_on, random_transformer


@pytest.fixture
def transformer() -> Any:
    return random_transformer(Shape(double=1, single=1))


def _state(transformer: Any) -> dict[str, Any]:
    return {
        name: (id(one), one.shape, one.stride(), one.untyped_storage().nbytes(), one.numpy().tobytes())
        for name, one in transformer.named_parameters()
    }


def test_float8_of_a_file_stays_what_it_is_byte_by_byte() -> None:
    """Bytes and products by hand, see tests/pipeline/test_weights_file.py."""
    products = torch.tensor([[0.25, 0.75, -0.75], [112.0, 0.00048828125, 0.0]])
    for dtype in (torch.float32, torch.bfloat16):
        stored = as_stored([products.to(dtype)[:1], products.to(dtype)[1:]], torch.tensor([0.25, 0.25]))
        assert stored is not None
        assert stored.values.view(torch.uint8).flatten().tolist() == [0x38, 0x44, 0xC4, 0x7E, 0x01, 0x00]
        assert stored.scale.tolist() == [[0.25], [0.25]]
        assert stored.dtype == dtype


def test_every_float8_number_survives_bfloat16_at_any_scale() -> None:
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    numbers = numbers[numbers.float().isfinite() & (numbers.view(torch.uint8) != 0x80)]
    for scale in torch.logspace(-12, 4, 400):
        products = (numbers.float() * scale).to(torch.bfloat16)[None]
        stored = as_stored([products], scale[None])
        assert stored is not None
        assert torch.equal(stored.values[0].view(torch.uint8), numbers.view(torch.uint8))


@pytest.mark.parametrize("change", [lambda weight: weight * 1.01, lambda weight: weight + 1e-3])
def test_changed_weights_are_not_those_of_the_file(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    products = torch.tensor([[0.25, 0.75, -0.75]])
    assert as_stored([change(products)], torch.tensor([0.25])) is None
    assert as_stored([products], torch.tensor([0.0])) is None


@pytest.mark.parametrize("precision", PRECISIONS)
def test_undo_gives_each_parameter_its_own_memory(transformer: Any, precision: Any) -> None:
    before = _state(transformer)
    with engine_on(transformer, precision):
        names = transformer.state_dict().keys()
        assert [name for name in before if before[name][-1] != _state(transformer)[name][-1]] == []
    assert _state(transformer) == before
    assert transformer.state_dict().keys() == names


def test_fused_parameters_share_memory(transformer: Any) -> None:
    with engine_on(transformer) as engine:
        attention, weights = transformer.transformer_blocks[0].attn, engine.weights.doubles[0].image
        assert isinstance(weights.qkv.weight, torch.Tensor)
        address = weights.qkv.weight.untyped_storage().data_ptr()
        assert attention.to_q.weight.untyped_storage().data_ptr() == address
        assert attention.to_v.weight.untyped_storage().data_ptr() == address
        assert weights.qkv.weight.shape == (3 * 48, 48)
        output = engine.weights.output.weight
        assert isinstance(output, torch.Tensor)
        assert output.data_ptr() == transformer.proj_out.weight.data_ptr()


def test_fp8_quantizes_the_fused_matrices_of_blocks_only(transformer: Any) -> None:
    with engine_on(transformer, "fp8") as engine:
        weights = engine.weights
        double, single = weights.doubles[0], weights.singles[0]
        for stream in (double.text, double.image):
            assert all(layer.quantized for layer in (stream.qkv, stream.out, stream.mlp_in, stream.mlp_out))
            assert not stream.modulation.quantized
        assert all(layer.quantized for layer in (single.qkv, single.mlp_in, single.out))
        sensitive = (weights.embed_image, weights.embed_text, weights.final_modulation, weights.output)
        assert not any(layer.quantized for layer in (*sensitive, single.modulation))
        assert len(weights.quantized) == 8 + 3
        block = transformer.single_transformer_blocks[0]
        parts = [block.attn.to_q, block.attn.to_k, block.attn.to_v]
        whole = quantize(torch.cat([part.weight for part in parts]))
        stored = weights.quantized["single.0.qkv"]
        assert torch.equal(stored.values.float(), whole.values.float())
        assert torch.equal(stored.scale, whole.scale)


def _adapter(transformer: Any) -> None:
    from peft import LoraConfig

    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))


def _quantized_layer(transformer: Any) -> None:
    class Linear8(torch.nn.Linear):
        pass

    transformer.transformer_blocks[0].attn.to_k.__class__ = Linear8


def _other_processor(transformer: Any) -> None:
    transformer.single_transformer_blocks[0].attn.processor = type("FluxIPAdapterAttnProcessor", (), {})()


def _half(transformer: Any) -> None:
    torch.nn.Module.to(transformer, dtype=torch.float16)


def _mixed(transformer: Any) -> None:
    transformer.proj_out.bfloat16()


@pytest.mark.parametrize(
    ("spoil", "remedy"),
    [
        (_adapter, "pipe.fuse_lora"),
        (_quantized_layer, "without quantization"),
        (_other_processor, "unload"),
        (_half, "bfloat16"),
        (_mixed, "one dtype"),
        (lambda transformer: transformer.transformer_blocks[0].attn.fuse_projections(), "unfuse_qkv_projections"),
    ],
    ids=["lora", "quantized", "ip-adapter", "float16", "mixed", "fused"],
)
def test_unsupported_transformer_is_refused_unchanged(transformer: Any, spoil: Any, remedy: str) -> None:
    spoil(transformer)
    addresses = [one.data_ptr() for one in transformer.parameters()]
    with ExitStack() as undo, pytest.raises(InvalidInput, match=remedy) as error:
        take_weights(transformer, "bf16", undo)
    assert "\n" not in str(error.value)
    assert [one.data_ptr() for one in transformer.parameters()] == addresses


def _taken(transformer: Any, precision: Any, undo: ExitStack) -> EngineWeights:
    weights = take_weights(transformer, precision, undo)
    weights.sources.verify(transformer)
    return weights


@pytest.mark.parametrize("precision", PRECISIONS)
def test_moved_or_converted_transformer_is_refused(transformer: Any, precision: Any) -> None:
    with ExitStack() as undo:
        weights = _taken(transformer, precision, undo)
        layer = transformer.single_transformer_blocks[0].proj_mlp
        layer.weight.data = layer.weight.data.clone()
        with pytest.raises(InvalidInput, match="moved, converted or replaced"):
            weights.sources.verify(transformer)


def test_adapter_added_later_is_refused(transformer: Any) -> None:
    with ExitStack() as undo:
        weights = _taken(transformer, "bf16", undo)
        _adapter(transformer)
        with pytest.raises(InvalidInput, match="not fused"):
            weights.sources.verify(transformer)
        transformer.delete_adapters("default")


def test_weights_changed_after_quantizing_are_refused(transformer: Any) -> None:
    with ExitStack() as undo:
        weights = _taken(transformer, "fp8", undo)
        projection = transformer.transformer_blocks[0].attn.to_k.weight
        down, up = torch.randn(1, projection.shape[1]), torch.randn(projection.shape[0], 1)
        projection.data.add_(1e-3 * up @ down)
        with pytest.raises(InvalidInput, match="changed after they were quantized"):
            weights.sources.verify(transformer)


def test_content_hash_is_of_the_original_numbers(transformer: Any) -> None:
    hashes = []
    for change in (0.0, 0.0, 1e-3):
        transformer.single_transformer_blocks[0].proj_out.weight.data[0, 0] += change
        with engine_on(transformer, "fp8") as engine:
            hashes.append(engine.weights.sources.content_hash())
    assert hashes[0] == hashes[1] != hashes[2]
