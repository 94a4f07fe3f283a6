"""Recorded calls: the bits of a transformer's steps in every layout, and a reason where none is recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kontext_fast.engine.graphs.recorded_calls import RecordedCalls, StepGraphs, new_facts
from kontext_fast.engine.ops import PortableOps
from kontext_fast.engine.transformer import EngineTransformer
from tests.engine.graphs.taped import TapedRecording, TapeRecorder
from tests.engine.transformers import SHAPES, engine_on, inputs_for, prepare, random_transformer

LAYOUTS: tuple[dict[str, Any], ...] = (
    {},
    {"batch": 2},
    {"image": (4, 4)},
    {"text": 9},
)


@contextmanager
def engines(most_tokens: int = 1000, name: str = "both-kinds") -> Iterator[tuple[Any, EngineTransformer, Any]]:
    """A transformer, its engine without graphs, and one with them."""
    transformer = random_transformer(SHAPES[name])
    with engine_on(transformer, "fp8") as plain:
        graphs = StepGraphs(TapeRecorder(), most_tokens)
        yield transformer, plain, EngineTransformer(plain.weights, PortableOps(precision="fp8"), graphs=graphs)


def steps(engine: EngineTransformer, inputs: dict[str, Any], seed: int = 0) -> list[Tensor]:
    """The velocities of two steps of one request; the seed is that of its image and text."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(x.shape, generator=generator) for name, x in inputs.items() if name.endswith("states")}
    prepared = prepare(engine, inputs)
    text = engine.embed_text(drawn["encoder_hidden_states"])
    return [engine.step(prepared, index, drawn["hidden_states"], text) for index in range(2)]


def assert_same(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


@pytest.mark.parametrize("name", SHAPES)
def test_steps_have_the_bits_of_steps_without_graphs(name: str) -> None:
    with engines(name=name) as (transformer, plain, recording):
        for seed in range(2):
            inputs = inputs_for(transformer, batch=2)
            assert_same(steps(recording, inputs, seed), steps(plain, inputs, seed))
        facts = recording.graphs.facts
        assert (facts["graphs"], facts["replays"]) == (1, 2)
        assert facts["unrecorded"] == {"first of its layout": 1, "recorded": 1}


def test_layouts_in_turn_keep_their_own_bits() -> None:
    with engines() as (transformer, plain, recording):
        for seed in range(2):
            for layout in LAYOUTS:
                inputs = inputs_for(transformer, **layout)
                assert_same(steps(recording, inputs, seed), steps(plain, inputs, seed))
        assert recording.graphs.facts["graphs"] == len(LAYOUTS)
        # Where the reference begins, nothing but the number of output tokens tells.
        moved = inputs_for(transformer, image=(2, 4), reference=(3, 5))
        assert_same(steps(recording, moved), steps(plain, moved))


def test_velocities_are_not_overwritten_by_later_steps() -> None:
    with engines() as (transformer, _, recording):
        inputs = inputs_for(transformer)
        steps(recording, inputs)
        first, second = steps(recording, inputs)
        kept = first.clone(), second.clone()
        steps(recording, inputs, seed=1)
        assert_same((first, second), kept)
        assert not torch.equal(first, second)


def test_step_of_more_tokens_runs_as_before() -> None:
    tokens = 7 + 3 * 5 + 2 * 4
    for most, graphs in ((tokens, 1), (tokens - 1, 0)):
        with engines(most) as (transformer, _, recording):
            steps(recording, inputs_for(transformer))
            facts = recording.graphs.facts
            assert (facts["up_to_tokens"], facts["graphs"]) == (most, graphs)
            assert facts["unrecorded"].get("more tokens", 0) == (0 if graphs else 2)
            steps(recording, inputs_for(transformer, batch=2))
            assert facts["unrecorded"]["more tokens"] == (2 if graphs else 4)


def test_full_precision_has_a_graph_of_its_own() -> None:
    transformer = random_transformer(SHAPES["both-kinds"])
    with engine_on(transformer) as exact, engine_on(random_transformer(SHAPES["both-kinds"]), "fp8") as quantized:
        graphs = StepGraphs(TapeRecorder(), 1000)
        engine = EngineTransformer(quantized.weights, PortableOps(precision="fp8"), exact.weights, graphs=graphs)
        inputs = inputs_for(transformer)
        prepared, text = prepare(engine, inputs), engine.embed_text(inputs["encoder_hidden_states"])

        def velocity(full_precision: bool) -> Tensor:
            return engine.step(prepared, 0, inputs["hidden_states"], text, full_precision=full_precision)

        results = [(velocity(True), velocity(False)) for _ in range(3)]
        assert graphs.facts["graphs"] == 2
    assert not torch.equal(*results[0])
    for pair in results[1:]:
        assert_same(pair, results[0])


def add_one(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [inputs[0] + 1]


def test_least_recently_used_recording_is_dropped() -> None:
    facts = new_facts()
    calls = RecordedCalls(TapeRecorder(), facts, most=2)
    for size in (1, 2, 1, 3):
        for _ in range(3):
            calls.run("key", add_one, [torch.ones(size)])
    replays = facts["replays"]
    calls.run("key", add_one, [torch.ones(1)])
    assert (facts["graphs"], facts["replays"]) == (2, replays + 1)
    calls.run("key", add_one, [torch.ones(2)])
    assert facts["replays"] == replays + 1
    calls.clear()
    assert facts["graphs"] == 0


def test_another_state_or_switch_replays_nothing() -> None:
    facts = new_facts()
    calls = RecordedCalls(TapeRecorder(), facts, most=2)
    for state in ("before", "after"):
        for _ in range(3):
            calls.run("key", add_one, [torch.ones(1)], state=state)
    assert (facts["graphs"], facts["replays"]) == (1, 2)
    before = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = not before
    try:
        calls.run("key", add_one, [torch.ones(1)], state="after")
    finally:
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = before
    assert facts["replays"] == 2


def test_operations_that_are_watched_run_one_by_one() -> None:
    facts = new_facts()
    calls = RecordedCalls(TapeRecorder(), facts, most=2)
    x = torch.ones(2, 2)
    for _ in range(3):
        calls.run("key", lambda inputs: [inputs[0] @ inputs[0]], [x])
    with FlopCounterMode(display=False) as counter:
        calls.run("key", lambda inputs: [inputs[0] @ inputs[0]], [x])
    assert counter.get_total_flops() == 16
    assert facts["unrecorded"]["operations are watched"] == 1


def test_recording_of_other_bits_is_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TapedRecording, "replay", lambda self: [output.fill_(-0.0) for output in self.outputs])
    facts = new_facts()
    calls = RecordedCalls(TapeRecorder(), facts, most=2)
    for _ in range(4):
        (result,) = calls.run("key", lambda inputs: [inputs[0] * 0], [torch.ones(1)])
        assert not torch.signbit(result)
    assert facts["unrecorded"] == {"first of its layout": 1, "a recording computes other numbers": 3}


def test_a_nan_equals_itself() -> None:
    facts = new_facts()
    calls = RecordedCalls(TapeRecorder(), facts, most=2)
    for _ in range(2):
        calls.run("key", add_one, [torch.full((1,), torch.nan)])
    assert facts["graphs"] == 1


def test_call_that_cannot_be_recorded_goes_on_with_its_reason() -> None:
    facts = new_facts()
    calls = RecordedCalls(TapeRecorder(), facts, most=2)
    for value in range(1, 4):
        (result,) = calls.run("key", lambda inputs: [inputs[0] * inputs[0].item()], [torch.full((1,), float(value))])
        assert result.item() == value**2
    (reason,) = [reason for reason in facts["unrecorded"] if "depends on the numbers" in reason]
    assert facts["unrecorded"][reason] == 2
