"""Offloading and the preset `low_memory`: parts of encoders come and go, and weights come from where they wait."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kontext_fast.engine.ops import Linear, PortableOps, Precision
from kontext_fast.engine.transformer import EngineTransformer
from kontext_fast.engine.weights import take_weights
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import accelerate, apply_plan
from kontext_fast.optimizations.call_tracking import tracker_of
from kontext_fast.optimizations.presets import resolve
from kontext_fast.optimizations.techniques.engine import Engine
from kontext_fast.optimizations.techniques.offload import Offload, _inputs_on, _place, _Resident, _units, _wait
from kontext_fast.pipeline.device import Machine
from tests.engine.transformers import Shape, engine_on, inputs_for, prepare, random_transformer, stepped
from tests.pipelines import render, small_pipeline

ELSEWHERE = torch.device("cpu", 0)
"""Another device than `cpu` to whoever compares, with the same memory: brings every transfer about on a CPU."""


@pytest.fixture
def pipe() -> Any:
    return small_pipeline()


def test_encoders_are_on_the_device_part_by_part(pipe: Any) -> None:
    with accelerate(pipe, [Engine(), Offload()], quiet=True) as acceleration:
        render(pipe)
        facts = acceleration.facts["offload"]
        parts = [unit for name in ("text_encoder", "text_encoder_2") for unit in _units(getattr(pipe, name))]
    sizes = [sum(one.nbytes for one in unit.tensors()) for unit in parts]
    everything = {one.data_ptr(): one.nbytes for name in ("text_encoder", "text_encoder_2")
                  for one in [*getattr(pipe, name).parameters(), *getattr(pipe, name).buffers()]}  # fmt: skip
    assert facts["encoder_bytes"] == sum(everything.values())
    assert facts["resident_peak_bytes"] == max(sizes)


def test_device_runs_a_copy_and_host_keeps_the_original(pipe: Any) -> None:
    encoder = pipe.text_encoder_2
    block = encoder.encoder.block[0]
    weight = block.layer[0].SelfAttention.q.weight
    waiting, running = weight.data_ptr(), []
    with accelerate(pipe, [Engine(), Offload()], quiet=True):
        block.layer[0].register_forward_pre_hook(lambda *_: running.append(weight.data_ptr()))
        render(pipe)
        assert running
        assert waiting not in running
        assert weight.data_ptr() == waiting


def test_tokens_follow_the_weights_to_the_device() -> None:
    tokens = torch.zeros(1, 4, dtype=torch.long)
    args, kwargs = _inputs_on(
        torch.device("meta"), (tokens, 3), {"attention_mask": tokens, "output_hidden_states": False}
    )
    assert (args[0].device.type, args[1]) == ("meta", 3)
    assert kwargs["attention_mask"].device.type == "meta"
    assert kwargs["output_hidden_states"] is False


def test_encoders_get_their_tokens_on_the_device(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from kontext_fast.optimizations.techniques import offload

    given: list[Any] = []
    monkeypatch.setattr(
        offload, "_inputs_on", lambda device, args, kwargs: given.append(device) or _inputs_on(device, args, kwargs)
    )
    with accelerate(pipe, [Engine(), Offload()], quiet=True):
        render(pipe)
        assert given == [pipe._execution_device] * 2
    render(pipe)
    assert len(given) == 2


def test_part_that_fails_leaves_the_device(pipe: Any) -> None:
    (unit, *_) = _units(pipe.text_encoder_2)
    facts: dict[str, Any] = {"resident_peak_bytes": 0}
    resident = _Resident(torch.device("cpu"), facts)
    with ExitStack() as undo:
        _wait(unit, undo)
        unit.module.register_forward_pre_hook(lambda *_: resident.bring(unit))
        unit.module.register_forward_hook(lambda *_: resident.drop(unit), always_call=True)
        before = [one.data_ptr() for one in unit.tensors()]
        with pytest.raises(Exception, match=r".+"):
            unit.module("no tensor")
        assert resident._bytes == 0
        assert facts["resident_peak_bytes"] > 0
        assert [one.data_ptr() for one in unit.tensors()] == before


def test_every_weight_of_an_encoder_is_in_one_part(pipe: Any) -> None:
    for name in ("text_encoder", "text_encoder_2"):
        encoder = getattr(pipe, name)
        owned = [id(one) for unit in _units(encoder) for one in unit.tensors()]
        assert set(owned) == {id(one) for one in [*encoder.parameters(), *encoder.buffers()]}
        assert len(list(_units(encoder))) > 3


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_engine_weights_return_to_host_memory(precision: Precision) -> None:
    transformer, same = random_transformer(Shape()), random_transformer(Shape())
    inputs = inputs_for(transformer)
    waiting = {name: one.data_ptr() for name, one in transformer.named_parameters()}
    with engine_on(same, precision) as engine:
        expected = stepped(engine, prepare(engine, inputs), inputs)
    with ExitStack() as undo:
        weights = take_weights(transformer, precision, undo, device=ELSEWHERE)
        engine = EngineTransformer(weights, PortableOps(precision=precision))
        assert torch.equal(stepped(engine, prepare(engine, inputs), inputs), expected)
        # What is quantized waits where it was; everything else has a copy that the engine reads.
        moved = {name for name, one in transformer.named_parameters() if one.data_ptr() != waiting[name]}
        quantized = {name for name, one in transformer.named_parameters() if any(one is r for r in
                     weights.sources._replaced)}  # fmt: skip
        assert moved == waiting.keys() - quantized
        assert bool(quantized) == (precision == "fp8")
        assert weights.sources.host_bytes == sum(
            one.nbytes for name, one in transformer.named_parameters() if name in quantized
        )
    assert {name: one.data_ptr() for name, one in transformer.named_parameters()} == waiting


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_modulations_are_read_from_host_memory(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer, same = random_transformer(Shape()), random_transformer(Shape())
    inputs = inputs_for(transformer)
    with engine_on(same, precision) as engine:
        expected = stepped(engine, prepare(engine, inputs), inputs)
    layers = {name: layer for name, layer in transformer.named_modules() if re.search(r"blocks.*norm.*linear$", name)}
    waiting = {name: layer.weight.data_ptr() for name, layer in layers.items()}
    assert len(waiting) == 2 * len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
    with ExitStack() as undo:
        weights = take_weights(transformer, precision, undo, device=ELSEWHERE, modulations_in_host_memory=True)
        brought: list[int] = []
        on = Linear.on
        monkeypatch.setattr(
            Linear, "on", lambda layer, device: brought.append(layer.weight.data_ptr()) or on(layer, ELSEWHERE)
        )
        engine = EngineTransformer(weights, PortableOps(precision=precision))
        assert torch.equal(stepped(engine, prepare(engine, inputs), inputs), expected)
        assert {name: layer.weight.data_ptr() for name, layer in layers.items()} == waiting
        assert set(waiting.values()) <= set(brought)
        inside = sum(layer.weight.nbytes + layer.bias.nbytes for layer in layers.values())
        quantized = sum(parameter.nbytes for parameter in weights.sources._replaced)
        assert weights.sources.host_bytes == inside + quantized


def test_layer_comes_to_the_device_and_stays_where_it_is() -> None:
    layer = Linear(torch.ones(2, 3), torch.zeros(2))
    assert layer.on(torch.device("cpu")) is layer
    brought = layer.on(torch.device("meta"))
    assert brought.weight.device.type == "meta"
    assert brought.bias is not None
    assert brought.bias.device.type == "meta"


def test_low_memory_for_16_gb_renders_what_low_memory_does(pipe: Any) -> None:
    with accelerate(pipe, "low_memory", quiet=True):
        expected = render(pipe)
    with accelerate(pipe, "low_memory(modulations=host)", quiet=True) as acceleration:
        np.testing.assert_array_equal(render(pipe), expected)
    assert acceleration.plan.applied[0].parameters["modulations"] == "host"
    assert "modulations" not in resolve("low_memory", Machine.detect("cpu")).applied[0].parameters


def test_matrices_are_moved_one_at_a_time() -> None:
    transformer = random_transformer(Shape())
    largest = 0

    def quantizer(name: str, parts: Any) -> Any:
        nonlocal largest
        largest = max(largest, sum(part.nbytes for part in parts))
        from kontext_fast.engine.ops import quantize
        from kontext_fast.engine.weights import _quantized

        return _quantized(quantize, parts)

    with ExitStack() as undo:
        take_weights(transformer, "fp8", undo, device=ELSEWHERE, quantizer=quantizer)
    assert 0 < largest < sum(one.nbytes for one in transformer.single_transformer_blocks[0].parameters())


def test_low_memory_renders_what_balanced_renders(pipe: Any) -> None:
    with accelerate(pipe, "balanced", quiet=True):
        balanced = render(pipe)
    with accelerate(pipe, "low_memory", quiet=True) as acceleration:
        np.testing.assert_array_equal(render(pipe), balanced)
        assert acceleration.plan.in_host_memory


def test_other_device_needs_a_plan_in_host_memory(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine.detect("cpu")
    assert not resolve("balanced", machine).in_host_memory
    with pytest.raises(InvalidInput, match=r"pipe\.to\('meta'\).*low_memory"):
        apply_plan(resolve("balanced", machine), pipe, "meta")
    assert pipe._execution_device == torch.device("cpu")
    apply_plan(resolve("balanced", machine), pipe, "cpu").revert()


def test_inputs_are_made_on_the_chosen_device(pipe: Any) -> None:
    from kontext_fast.optimizations.acceleration import _run_on
    from kontext_fast.optimizations.call_tracking import track_calls

    with ExitStack() as undo:
        calls = track_calls(pipe, undo)
        _run_on(pipe, resolve("low_memory", Machine.detect("cpu")), "meta", calls, undo)
        assert pipe._execution_device == torch.device("meta")
    assert pipe._execution_device == torch.device("cpu")


def test_label_says_that_a_cpu_has_one_memory() -> None:
    cpu = Machine.detect("cpu")
    assert Offload().label_on(cpu) == "offload: saves nothing on a CPU, which has one memory"
    assert Offload().label_on(replace(cpu, device="cuda")) is None


def test_tensor_that_was_moved_gets_its_own_memory_back() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    before = parameter.data_ptr()
    with ExitStack() as undo:
        _place(parameter, torch.device("cpu"), undo)
        assert parameter.data_ptr() == before
        _place(parameter, ELSEWHERE, undo)
        assert parameter.data_ptr() != before
        parameter.data += 1  # of the copy
    assert parameter.data_ptr() == before
    assert parameter.tolist() == [1.0, 1.0]


def test_part_that_fails_outside_of_a_call_leaves_the_device_too(pipe: Any) -> None:
    block = pipe.text_encoder_2.encoder.block[0]
    weight = block.layer[0].SelfAttention.q.weight
    waiting = weight.data_ptr()

    def fail(*_: Any) -> None:
        assert weight.data_ptr() != waiting
        raise RuntimeError("no luck")

    with accelerate(pipe, [Engine(), Offload()], quiet=True):
        block.layer[0].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="no luck"):
            pipe.encode_prompt("make it red", max_sequence_length=48)
        assert weight.data_ptr() == waiting


class Block(torch.nn.Module):
    """With a list of its own, which is not a part by itself, and a buffer inside."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2, affine=False)])


class Layered(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(2, 2)
        self.blocks = torch.nn.ModuleList([Block(), Block()])
        self.norm = torch.nn.LayerNorm(2)
        self.register_buffer("positions", torch.arange(2))


def test_parts_are_the_outermost_blocks_and_what_lies_outside() -> None:
    encoder = Layered()
    parts = {unit.module: {id(tensor) for tensor in unit.tensors()} for unit in _units(encoder)}
    assert len(list(_units(encoder))) == len(parts)
    assert parts == {
        **{block: {id(one) for one in (*block.parameters(), *block.buffers())} for block in encoder.blocks},
        encoder: {id(encoder.positions)},
        encoder.embedding: {id(encoder.embedding.weight)},
        encoder.norm: {id(encoder.norm.weight), id(encoder.norm.bias)},
    }


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_pipeline_with_one_encoder_offloads_that_one(pipe: Any, name: str) -> None:
    setattr(pipe, name, None)
    pipe.vae = None
    encoder = pipe.text_encoder or pipe.text_encoder_2
    with ExitStack() as undo:
        facts = Offload().apply(pipe, undo)
        tensors = {id(one): one.nbytes for one in (*encoder.parameters(), *encoder.buffers())}
        assert facts == {"encoder_bytes": sum(tensors.values()), "resident_peak_bytes": 0}
        encoder(torch.ones(1, 4, dtype=torch.long))
        assert facts["resident_peak_bytes"] > 0


def test_vae_is_on_the_device_until_the_end(pipe: Any) -> None:
    pipe.__class__ = type("Elsewhere", (type(pipe),), {"_execution_device": ELSEWHERE})
    waiting = [parameter.data_ptr() for parameter in pipe.vae.parameters()]
    with ExitStack() as undo:
        Offload().apply(pipe, undo)
        assert not {parameter.data_ptr() for parameter in pipe.vae.parameters()} & set(waiting)
    assert [parameter.data_ptr() for parameter in pipe.vae.parameters()] == waiting


def test_interruption_by_the_keyboard_frees_the_device_at_the_end_of_the_call(pipe: Any) -> None:
    block = pipe.text_encoder_2.encoder.block[0]
    weight = block.layer[0].SelfAttention.q.weight
    waiting, running = weight.data_ptr(), []

    def interrupt(*_: Any) -> None:
        running.append(weight.data_ptr())
        raise KeyboardInterrupt

    with ExitStack() as undo:
        Offload().apply(pipe, undo)
        block.layer[0].register_forward_pre_hook(interrupt)
        calls = tracker_of(pipe)
        assert calls is not None
        with pytest.raises(KeyboardInterrupt), calls.open(pipe):
            pipe.encode_prompt("make it red", max_sequence_length=48)
        assert running
        assert waiting not in running
        assert weight.data_ptr() == waiting
