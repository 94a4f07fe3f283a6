"""When graphs of the text encoders are used and T5 begins: which calls, arguments and encoders that takes."""

from __future__ import annotations

import copy
import importlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from kontext_fast.engine.graphs import op_tape, recording
from kontext_fast.engine.graphs.recorded_calls import new_facts
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.call_tracking import tracker_of
from kontext_fast.optimizations.techniques.text_graphs import (
    TextGraphs,
    _arguments_of_t5,
    _encode_twice,
    _EncoderGraphs,
    _encodes_on,
    _only_tensor,
    _QuicklySearched,
    _will_encode,
)
from kontext_fast.pipeline.device import Machine
from kontext_fast.pipeline.previews import AROUND
from tests import needs
from tests.engine.graphs.taped import TapeRecorder
from tests.pipelines import small_pipeline

USUAL = {"prompt": "make it red", "num_images_per_prompt": 1, "max_sequence_length": 48}


@pytest.fixture(scope="module")
def shared() -> Any:
    return small_pipeline()


def test_label_says_that_only_cuda_has_graphs() -> None:
    cpu = Machine.detect("cpu")
    assert TextGraphs().label_on(cpu) == "text_graphs: changes nothing on cpu"
    assert TextGraphs().label_on(replace(cpu, device="cuda")) is None


@needs.no_gpu
def test_kernel_is_compiled_ahead_where_the_pipeline_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter, which stands for the device that has kernels."""
    pytest.importorskip("triton", reason=needs.TRITON)
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # for what Triton imports at its first launch
    kernel = importlib.import_module("kontext_fast.engine.kernels.safe_softmax")
    monkeypatch.setattr(op_tape, "has_kernels", lambda tensor: tensor.device.type == "cpu")
    ran: list[torch.Tensor] = []
    monkeypatch.setattr(kernel, "safe_softmax", lambda scores, run=kernel.safe_softmax: ran.append(run(scores)))

    def ahead(device: str) -> Any:
        return TextGraphs().precompile_calls(SimpleNamespace(_execution_device=torch.device(device)))

    assert ahead("meta") == ()
    (launch,) = ahead("cpu")
    launch()
    assert [(softmax.dtype, softmax.tolist()) for softmax in ran] == [(torch.float32, [1.0])]


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


def test_recorded_prompt_is_of_the_length_that_calls_have() -> None:
    lengths: list[int] = []
    pipe = SimpleNamespace(
        tokenizer_2=SimpleNamespace(model_max_length=10**9),  # one that states no limit
        encode_prompt=lambda _, *, max_sequence_length: lengths.append(max_sequence_length),
    )
    _encode_twice(pipe)
    assert lengths == [512, 512]


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
            states = pipe.text_encoder_2(torch.ones(1, 4, dtype=torch.long), output_hidden_states=True).hidden_states
            own = pipe._get_t5_prompt_embeds("make it red", 1, 40), pipe._get_clip_prompt_embeds("red")
            return [*whole, *own, *states]

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
            facts = acceleration.facts["text_graphs"]
            assert facts["replays"] == 1
    assert list(without) == ["last_hidden_state"]
    assert list(states) == ["last_hidden_state", "hidden_states"]
    assert torch.equal(without.last_hidden_state, states.last_hidden_state)


class Encoder(torch.nn.Module):
    """Of a library, as far as a recording can tell."""

    __module__ = "transformers.anything"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()), requires_grad=False)
        self.runs = 0

    def forward(self, ids: torch.Tensor, factor: float = 1.0, shift: Any = 0.0, plus: float = 0.0) -> BaseModelOutput:
        self.runs += 1
        return BaseModelOutput(self.weight * ids * factor + shift + plus)


def test_capture_of_a_graph_runs_nothing_of_the_encoder() -> None:
    """Which may ask whether it is captured, and then do otherwise."""
    encoder, during = Encoder().eval(), []

    class Watching(TapeRecorder):
        def record(self, call: Any) -> Any:
            before = encoder.runs
            recording = super().record(call)
            during.append(encoder.runs - before)
            return recording

    graphs = _EncoderGraphs(Watching(), new_facts())
    for _ in range(3):
        graphs.run(encoder.forward, (torch.ones(2),), {})
    assert during == [0]


def test_recordings_are_told_apart_by_every_argument() -> None:
    tapes, facts, encoder = TapeRecorder(), new_facts(), Encoder().eval()
    graphs = _EncoderGraphs(tapes, facts)

    def run(ids: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        args, kwargs = ((), {"ids": ids, **named}) if others == ("by name",) else ((ids, *others), named)
        result = graphs.run(encoder.forward, args, kwargs)
        assert type(result) is BaseModelOutput
        assert torch.equal(result.last_hidden_state, encoder(*args, **kwargs).last_hidden_state)
        return torch.as_tensor(result.last_hidden_state)

    forms: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((), {}), ((2.0,), {}), (("by name",), {}), ((), {"shift": 1.0, "plus": 2.0}),
    ]  # fmt: skip
    for args, kwargs in forms:
        for start in range(3):
            run(torch.arange(start, start + 2.0), *args, **kwargs)
    assert facts["replays"] == tapes.recorded == facts["graphs"] == 4
    run(torch.ones(2), **dict(reversed(forms[-1][1].items())))
    assert facts["replays"] == 5
    run(torch.ones(2), 3.0)
    run(torch.ones(2), factor=3.0)
    run(torch.ones(2), shift=torch.ones(2))
    assert facts["replays"] == 5
    encoder.weight.data = torch.full((), 5.0)
    run(torch.ones(2))
    assert facts["graphs"] == 0
    for _ in range(2):
        run(torch.ones(2))
    assert (facts["replays"], facts["graphs"]) == (6, 1)
    encoder.train()
    run(torch.ones(2))
    counts = {"first of its layout": 7, "recorded": 5, "other arguments": 1, "training mode": 1}
    assert facts["unrecorded"] == counts
    graphs.run(encoder.forward, (torch.ones(2, device="meta"),), {})
    assert facts["unrecorded"] == {**counts, "on the meta": 1}
    graphs.clear()
    assert facts["graphs"] == 0


class Unrecorded(TapeRecorder):
    """Everything runs as always, so that runs can be counted."""

    def runs_on(self, device: torch.device) -> bool:
        return False


def test_t5_runs_once_and_at_the_beginning_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "recorder_for", lambda _: Unrecorded())
    pipe, ran = small_pipeline(), []
    usual = {"prompt": "make it red", "num_images_per_prompt": 2, "max_sequence_length": 48}
    asked = {**usual, "prompt_2": None, "device": torch.device("cpu")}
    with torch.no_grad():
        expected = pipe.encode_prompt(**asked)
    cls = type(pipe.text_encoder_2.encoder)
    monkeypatch.setattr(cls, "forward", lambda *args, run=cls.forward, **kw: ran.append(1) or run(*args, **kw))
    with accelerate(pipe, [TextGraphs()], quiet=True):
        calls = tracker_of(pipe)
        assert calls is not None
        for begins, options in ((1, {}), (0, {"joint_attention_kwargs": {"scale": 1.0}})):
            ran.clear()
            with calls.open(pipe, {**usual, **options}):
                assert len(ran) == begins
                with torch.no_grad():
                    results = pipe.encode_prompt(**asked)
                assert len(ran) == 1
                assert all(map(torch.equal, results, expected))


def test_modules_of_t5_are_not_searched_for_hooks_in_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "recorder_for", lambda _: Unrecorded())
    pipe, searched = small_pipeline(), []
    cls = type(pipe.text_encoder_2)
    with torch.no_grad(), accelerate(pipe, [TextGraphs()], quiet=True):
        monkeypatch.setattr(cls, "modules", lambda self, run=cls.modules: searched.append(self) or run(self))
        calls, own = tracker_of(pipe), dict(vars(pipe))
        assert calls is not None
        expected = pipe._get_t5_prompt_embeds("make it red", 1, 48)
        assert searched
        searched.clear()
        with calls.open(pipe):
            assert torch.equal(pipe._get_t5_prompt_embeds("make it red", 1, 48), expected)
            assert not searched
            assert vars(pipe) == {**own, "scheduler": pipe.scheduler}
