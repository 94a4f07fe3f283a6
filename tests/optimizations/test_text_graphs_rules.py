"""When graphs of the text encoders are used and T5 begins: which calls, arguments and encoders that takes."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kontext_fast.engine.graphs import recording
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.call_tracking import tracker_of
from kontext_fast.optimizations.techniques.text_graphs import (
    TextGraphs,
    _arguments_of_t5,
    _encodes_on,
    _only_tensor,
    _QuicklySearched,
    _will_encode,
)
from kontext_fast.pipeline.previews import AROUND
from tests.engine.graphs.taped import TapeRecorder
from tests.pipelines import small_pipeline

USUAL = {"prompt": "make it red", "num_images_per_prompt": 1, "max_sequence_length": 48}


@pytest.fixture(scope="module")
def shared() -> Any:
    return small_pipeline()


@pytest.mark.parametrize(
    ("others", "begins"),
    [
        ({}, True),
        ({"prompt": ["make it red", "make it blue"]}, True),
        ({"joint_attention_kwargs": {}}, True),
        ({"prompt": None}, False),
        ({"prompt": []}, False),
        ({"prompt": ("make it red",)}, False),
        ({"num_images_per_prompt": None}, False),
        ({"max_sequence_length": None}, False),
        ({"max_sequence_length": 49}, False),
        ({"prompt_embeds": 1}, False),
        ({"joint_attention_kwargs": {"scale": 0.5}}, False),
    ],
)
def test_t5_begins_with_calls_that_will_ask_for_it(shared: Any, others: dict[str, Any], begins: bool) -> None:
    assert _will_encode(SimpleNamespace(arguments={**USUAL, **others}, pipe=shared)) == begins  # type: ignore[arg-type]


def test_t5_waits_for_whatever_encodes_in_its_place(shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call: Any = SimpleNamespace(arguments=USUAL, pipe=copy.copy(shared))
    own = call.pipe.encode_prompt = lambda *args: args
    assert not _will_encode(call)
    setattr(own, AROUND, True)  # a clock, which encodes as diffusers does
    assert _will_encode(call)
    del call.pipe.encode_prompt
    monkeypatch.setattr(type(shared), "encode_prompt", lambda *args: args)
    assert not _will_encode(call)


@pytest.mark.parametrize(
    ("of_call", "texts"),
    [
        ({"prompt": "a"}, ["a"]),
        ({"prompt": ["a"], "prompt_2": "b"}, ["b"]),
        ({"prompt": "a", "prompt_2": ["b"]}, ["b"]),
        ({"prompt": "x", "negative_prompt": "a"}, ["a"]),
        ({"prompt": "x", "prompt_2": "b", "negative_prompt": ["a"], "negative_prompt_2": "c"}, ["c"]),
        ({"prompt": "x"}, None),
        ({"prompt": "x", "prompt_2": "a", "negative_prompt": "y"}, None),
        ({}, None),
    ],
)
def test_t5_is_asked_for_the_second_text_of_what_clip_encoded(of_call: dict[str, Any], texts: list[str] | None) -> None:
    of_clip = {"prompt": ["a"], "device": "cpu", "num_images_per_prompt": 2}
    expected = None if texts is None else {**of_clip, "prompt": texts, "max_sequence_length": 9}
    assert _arguments_of_t5({**of_call, "max_sequence_length": 9}, of_clip) == expected


def test_graph_is_of_one_tensor_and_plain_values() -> None:
    ids, mask = torch.ones(1, 4), torch.ones(1, 4)
    plain = {"a": None, "b": False, "c": 2, "d": 0.5, "e": "f"}
    assert _only_tensor((ids,), plain) is ids
    assert _only_tensor((None, True), {**plain, "input_ids": ids}) is ids
    for args, kwargs in (((ids, mask), {}), ((ids,), {"mask": mask}), ((ids,), {"states": [mask]}), ((), plain)):
        assert _only_tensor(args, kwargs) is None


def test_encoder_shows_its_modules_where_one_has_a_hook() -> None:
    encoder = torch.nn.Sequential(torch.nn.Linear(2, 2))
    searched = _QuicklySearched(encoder)
    assert list(searched.modules()) == []
    for hook in ("_hf_hook", "_diffusers_hook"):
        setattr(encoder[0], hook, object())
        assert list(searched.modules()) == [encoder, encoder[0]]
        delattr(encoder[0], hook)
    assert searched.training is True
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = searched.nothing_like_it
    assert _QuicklySearched(lambda *args, **kwargs: (args, kwargs))(1, a=2) == ((1,), {"a": 2})


def test_prompt_is_recorded_ahead_where_all_that_encodes_is_there() -> None:
    cpu, encoder = torch.device("cpu"), torch.nn.Linear(2, 2)
    pipe, both = SimpleNamespace(tokenizer=1, tokenizer_2=2), {"text_encoder": encoder, "text_encoder_2": encoder}
    assert _encodes_on(cpu, pipe, both)
    assert _encodes_on(torch.device("cpu", 0), pipe, both)
    assert not _encodes_on(torch.device("meta"), pipe, both)
    assert not _encodes_on(cpu, pipe, {**both, "text_encoder": torch.nn.Linear(2, 2, device="meta")})
    assert not _encodes_on(cpu, pipe, {"text_encoder": encoder})
    for name in ("tokenizer", "tokenizer_2"):
        assert not _encodes_on(cpu, SimpleNamespace(**{**vars(pipe), name: None}), both)


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("change", ["forward", "_compiled_call_impl"])
def test_encoder_with_a_forward_of_its_own_has_no_graph(
    monkeypatch: pytest.MonkeyPatch, name: str, change: str
) -> None:
    tapes, pipe = TapeRecorder(), small_pipeline()
    monkeypatch.setattr(recording, "recorder_for", lambda _: tapes)
    encoder = getattr(pipe, name)
    setattr(encoder, change, encoder.forward if change != "forward" else lambda *args, **kw: type(encoder).forward(
        encoder, *args, **kw
    ))  # fmt: skip
    with accelerate(pipe, [TextGraphs()], quiet=True) as acceleration:
        facts = acceleration.facts["text_graphs"]
        assert facts["unrecorded"] == {f"{name} has a forward of its own": 1, "first of its layout": 1, "recorded": 1}
        assert facts["graphs"] == tapes.recorded == 1


def test_text_is_encoded_as_before_outside_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "recorder_for", lambda _: TapeRecorder())
    pipe = small_pipeline()

    def encoded() -> list[torch.Tensor]:
        with torch.no_grad():
            whole = pipe.encode_prompt("make it red", max_sequence_length=48)[:2]
            return [*whole, pipe._get_t5_prompt_embeds("make it red", 1, 40), pipe._get_clip_prompt_embeds("red")]

    expected = encoded()
    with accelerate(pipe, [TextGraphs()], quiet=True):
        for tensor, one in zip(encoded(), expected, strict=True):
            assert torch.equal(tensor, one)


def test_graph_answers_the_arguments_that_it_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "recorder_for", lambda _: TapeRecorder())
    pipe, ids = small_pipeline(), torch.ones(1, 48, dtype=torch.long)
    with torch.no_grad(), accelerate(pipe, [TextGraphs()], quiet=True) as acceleration:
        calls = tracker_of(pipe)
        assert calls is not None
        with calls.open(pipe):
            without, states = (pipe.text_encoder_2(ids, output_hidden_states=given) for given in (False, True))
            assert acceleration.facts["text_graphs"]["replays"] == 1
    assert list(without) == ["last_hidden_state"]
    assert list(states) == ["last_hidden_state", "hidden_states"]
    assert torch.equal(without.last_hidden_state, states.last_hidden_state)
