"""Graphs of the text encoders: the bits of the encoders, never those of other words, weights or arguments.

A tape stands in for a CUDA graph: it repeats the same operations at the same addresses, without Python.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from kontext_fast.engine.graphs import recording
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.presets import resolve
from kontext_fast.optimizations.techniques.engine import Engine
from kontext_fast.optimizations.techniques.offload import Offload
from kontext_fast.optimizations.techniques.prompt_cache import PromptCache
from kontext_fast.optimizations.techniques.text_graphs import TextGraphs
from kontext_fast.pipeline.device import Machine
from tests.engine.graphs.taped import TapeRecorder
from tests.pipelines import SIDE, picture, render, small_pipeline

RED, REMOVE = "make the background red", "remove the circle"


@pytest.fixture
def pipe() -> Any:
    return small_pipeline()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> TapeRecorder:
    tapes = TapeRecorder()
    monkeypatch.setattr(recording, "recorder_for", lambda device: tapes if device.type == "cpu" else None)
    return tapes


def embeddings(pipe: Any, prompts: tuple[str, ...] = (RED,)) -> list[np.ndarray[Any, Any]]:
    """The embeddings that reach the transformer in a call."""
    seen: list[np.ndarray[Any, Any]] = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: seen.extend(
            kwargs[name].numpy().copy() for name in ("encoder_hidden_states", "pooled_projections")
        ),
        with_kwargs=True,
    )
    try:
        render(pipe, prompts=prompts, seeds=tuple(range(len(prompts))), steps=1)
    finally:
        handle.remove()
    return seen


def latents(pipe: Any, **options: Any) -> Any:
    """Of one step."""
    size = {"height": SIDE, "width": SIDE, "max_area": SIDE * SIDE, "_auto_resize": False}
    generator = torch.Generator().manual_seed(0)
    return pipe(
        image=picture(), prompt=RED, num_inference_steps=1, generator=generator, output_type="latent",
        max_sequence_length=48, **size, **options,
    ).images  # fmt: skip


def assert_same(actual: list[np.ndarray[Any, Any]], expected: list[np.ndarray[Any, Any]]) -> None:
    for pair in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(*pair)


def test_usual_prompts_replay_from_the_first_call_on(
    pipe: Any, recorder: TapeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    red, remove = embeddings(pipe), embeddings(pipe, (REMOVE,))
    with accelerate(pipe, [TextGraphs()], quiet=True) as acceleration:
        facts = acceleration.facts["text_graphs"]
        assert facts["graphs"] == recorder.recorded == 2
        ran: list[int] = []
        norm = type(pipe.text_encoder_2.encoder.final_layer_norm)
        monkeypatch.setattr(norm, "forward", lambda _, x, run=norm.forward: ran.append(1) or run(_, x))
        assert_same(embeddings(pipe, (REMOVE,)), remove)
        assert_same(embeddings(pipe), red)
        assert ran == []
        assert facts["replays"] == 4
        assert facts["record_s"] > 0
        assert facts["pool_bytes"] == 2000
        assert facts["unrecorded"] == {"first of its layout": 2, "recorded": 2}


def test_other_numbers_of_prompts_are_recorded_at_a_second_call(pipe: Any, recorder: TapeRecorder) -> None:
    both = embeddings(pipe, (RED, REMOVE))
    with accelerate(pipe, [TextGraphs()], quiet=True) as acceleration:
        graphs = []
        for _ in range(3):
            assert_same(embeddings(pipe, (RED, REMOVE)), both)
            graphs.append(acceleration.facts["text_graphs"]["graphs"])
        assert graphs == [2, 4, 4]
        assert acceleration.facts["text_graphs"]["replays"] == 2


def test_pipeline_without_tokenizers_records_at_its_calls(pipe: Any, recorder: TapeRecorder) -> None:
    pipe.tokenizer = None
    ids = torch.ones(1, 48, dtype=torch.long)
    with torch.no_grad(), accelerate(pipe, [TextGraphs()], quiet=True):
        for _ in range(2):
            pipe.text_encoder_2(ids)  # from outside
        assert recorder.recorded == 0


def test_each_number_of_prompts_has_a_graph(pipe: Any, recorder: TapeRecorder) -> None:
    both, single = embeddings(pipe, (RED, REMOVE)), embeddings(pipe)
    with accelerate(pipe, [TextGraphs()], quiet=True) as acceleration:
        for _ in range(3):
            assert_same(embeddings(pipe, (RED, REMOVE)), both)
            assert_same(embeddings(pipe), single)
        assert acceleration.facts["text_graphs"]["graphs"] == 4


def test_oldest_graph_is_dropped(pipe: Any, recorder: TapeRecorder) -> None:
    with accelerate(pipe, [TextGraphs()], quiet=True) as acceleration:
        for count in range(1, 6):
            for _ in range(2):
                embeddings(pipe, (RED,) * count)
        assert acceleration.facts["text_graphs"]["graphs"] == 8


def test_weights_changed_in_place_are_read(pipe: Any, recorder: TapeRecorder) -> None:
    with accelerate(pipe, [TextGraphs()], quiet=True) as acceleration:
        for _ in range(3):
            before = embeddings(pipe)
        pipe.text_encoder_2.shared.weight.data.mul_(2)
        replays = acceleration.facts["text_graphs"]["replays"]
        after = embeddings(pipe)
        assert acceleration.facts["text_graphs"]["replays"] == replays + 2
    assert_same(embeddings(pipe), after)
    assert not np.array_equal(before[0], after[0])


def test_weights_at_another_address_are_recorded_anew(pipe: Any, recorder: TapeRecorder) -> None:
    with accelerate(pipe, [TextGraphs()], quiet=True) as acceleration:
        for _ in range(3):
            embeddings(pipe)
        weight = pipe.text_encoder_2.encoder.block[1].layer[0].SelfAttention.q.weight
        weight.data = weight.data * 3
        moved = [embeddings(pipe) for _ in range(3)]
        assert recorder.recorded == 3
        assert acceleration.facts["text_graphs"]["graphs"] == 2
    for recorded in moved:
        assert_same(recorded, embeddings(pipe))


def test_hooks_and_adapters_run_as_before(pipe: Any, recorder: TapeRecorder) -> None:
    from peft import LoraConfig

    with accelerate(pipe, [TextGraphs()], quiet=True) as acceleration:
        for _ in range(3):
            embeddings(pipe)
        ran: list[int] = []
        handle = pipe.text_encoder.final_layer_norm.register_forward_hook(lambda *_: ran.append(1))
        embeddings(pipe)
        handle.remove()
        assert ran == [1]
        assert acceleration.facts["text_graphs"]["unrecorded"]["hooks"] == 1
        pipe.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        pipe.text_encoder.eval()
        adapted = embeddings(pipe)
        counts = acceleration.facts["text_graphs"]["unrecorded"]
    assert any("of peft" in reason for reason in counts)
    assert_same(adapted, embeddings(pipe))


def test_calls_from_outside_the_pipeline_run_as_before(pipe: Any, recorder: TapeRecorder) -> None:
    ids = torch.ones(1, 48, dtype=torch.long)
    with torch.no_grad(), accelerate(pipe, [TextGraphs()], quiet=True) as acceleration:
        for _ in range(3):
            pipe.text_encoder_2(ids)
        assert acceleration.facts["text_graphs"]["replays"] == 0
        assert sum(acceleration.facts["text_graphs"]["unrecorded"].values()) == 4  # while it was applied


def test_recording_with_other_numbers_is_not_used(
    pipe: Any, recorder: TapeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.engine.graphs.taped import TapedRecording

    monkeypatch.setattr(TapedRecording, "replay", lambda self: [output.fill_(1) for output in self.outputs])
    expected = embeddings(pipe)
    with accelerate(pipe, [TextGraphs()], quiet=True) as acceleration:
        for _ in range(4):
            assert_same(embeddings(pipe), expected)
        assert acceleration.facts["text_graphs"]["graphs"] == 0
        counts = acceleration.facts["text_graphs"]["unrecorded"]
        assert counts == {"first of its layout": 2, "a recording computes other numbers": 10}
        assert recorder.recorded == 2


def test_encoder_that_looks_at_numbers_runs_as_before(
    pipe: Any, recorder: TapeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = type(pipe.text_encoder.embeddings).forward

    def looking(self: Any, *args: Any, **kwargs: Any) -> Any:
        embedded = embed(self, *args, **kwargs)
        return embedded if embedded.sum().item() > -1e9 else -embedded

    monkeypatch.setattr(type(pipe.text_encoder.embeddings), "forward", looking)
    with accelerate(pipe, [TextGraphs()], quiet=True) as acceleration:
        first = embeddings(pipe)
        for _ in range(2):
            assert_same(embeddings(pipe), first)
        counts = acceleration.facts["text_graphs"]["unrecorded"]
        assert sum(count for reason, count in counts.items() if "depends on the numbers" in reason) == 4


def test_image_is_the_same_with_graphs_and_true_cfg(pipe: Any, recorder: TapeRecorder) -> None:
    expected = render(pipe, negative="blurry")
    with accelerate(pipe, [TextGraphs()], quiet=True) as acceleration:
        for _ in range(3):
            np.testing.assert_array_equal(render(pipe, negative="blurry"), expected)
        assert acceleration.facts["text_graphs"]["replays"] == 12


def test_offload_and_graphs_exclude_each_other() -> None:
    with pytest.raises(InvalidInput, match="moves the encoders' weights at each call; leave text_graphs out"):
        resolve([Engine(), Offload(), TextGraphs()], Machine.detect("cpu"))
    assert len(resolve([Engine(), Offload()], Machine.detect("cpu")).optimizations) == 2


def test_threads_with_copies_get_their_own_embeddings(pipe: Any, recorder: TapeRecorder) -> None:
    prompts = (RED, REMOVE, "make the red circle blue", "remove the star")
    expected = {prompt: render(pipe, prompts=(prompt,), steps=2) for prompt in prompts}
    copies = {prompt: copy.copy(pipe) for prompt in prompts}
    for own in copies.values():
        own.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    with ExitStack() as undo:
        shared = [undo.enter_context(accelerate(own, [TextGraphs()], quiet=True)) for own in copies.values()]

        def edit_often(prompt: str) -> list[np.ndarray[Any, Any]]:
            return [render(copies[prompt], prompts=(prompt,), steps=2) for _ in range(4)]

        with ThreadPoolExecutor(len(prompts)) as threads:
            images = dict(zip(prompts, threads.map(edit_often, prompts), strict=True))
        assert shared[0].facts["text_graphs"]["replays"] > 0
        assert shared[0].facts["text_graphs"]["graphs"] == 2
    for prompt in prompts:
        for image in images[prompt]:
            np.testing.assert_array_equal(image, expected[prompt])


def test_tensor_subclasses_run_as_before(pipe: Any, recorder: TapeRecorder) -> None:
    class Quantized(torch.Tensor):
        pass

    expected = embeddings(pipe)
    layer = pipe.text_encoder_2.encoder.block[0].layer[0].SelfAttention.q
    layer.weight = torch.nn.Parameter(layer.weight.data.as_subclass(Quantized), requires_grad=False)
    with accelerate(pipe, [TextGraphs()], quiet=True) as acceleration:
        for _ in range(3):
            assert_same(embeddings(pipe), expected)
        assert acceleration.facts["text_graphs"]["unrecorded"]["weights of class Quantized"] == 5
        assert acceleration.facts["text_graphs"]["graphs"] == 1


def test_cpu_runs_as_before_and_says_so(pipe: Any) -> None:
    machine = Machine.detect("cpu")
    assert resolve([TextGraphs()], machine).labels == ("text_graphs: changes nothing on cpu",)
    expected = embeddings(pipe)
    with accelerate(pipe, [TextGraphs()], quiet=True) as acceleration:
        for _ in range(3):
            assert_same(embeddings(pipe), expected)
        assert acceleration.facts["text_graphs"]["graphs"] == 0


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({}, [[RED]]),
        ({"prompt_2": "other words"}, [["other words"]]),
        ({"negative_prompt": REMOVE, "negative_prompt_2": "less", "true_cfg_scale": 2.0}, [[RED], ["less"]]),
        ({"negative_prompt": RED, "negative_prompt_2": "less", "true_cfg_scale": 2.0}, [[RED], [RED], ["less"]]),
    ],
    ids=["one text", "two texts", "true CFG", "a negative prompt that cannot be told apart"],
)
def test_t5_begins_and_gives_what_is_asked_for(
    pipe: Any, recorder: TapeRecorder, options: dict[str, Any], texts: list[list[str]]
) -> None:
    expected = latents(pipe, **options)
    asked: list[tuple[str, list[str]]] = []
    for name in ("tokenizer", "tokenizer_2"):
        tokenize = getattr(pipe, name)
        watched = type(tokenize.__class__.__name__, (type(tokenize),), {})
        watched.__call__ = lambda self, text, *args, name=name, run=tokenize.__class__.__call__, **kwargs: (
            (asked.append((name, text)) if kwargs.get("padding") == "max_length" else None)
            or run(self, text, *args, **kwargs)
        )
        tokenize.__class__ = watched
    with accelerate(pipe, [TextGraphs()], quiet=True):
        asked.clear()
        assert torch.equal(latents(pipe, **options), expected)
    # T5 is first, for a negative prompt too; one more time where another text is asked for than it began with.
    before_clip = ["tokenizer_2", "tokenizer"] * (2 if "negative_prompt" in options else 1)
    assert [name for name, _ in asked] == before_clip + ["tokenizer_2"] * (len(texts) - len(before_clip) // 2)
    assert [text for name, text in asked if name == "tokenizer_2"] == texts


def starts(pipe: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[str]:
    """In which order a call checks its arguments and runs T5."""
    order: list[str] = []
    t5 = type(pipe.text_encoder_2.encoder)
    with monkeypatch.context() as watched:
        watched.setattr(t5, "forward", lambda *args, run=t5.forward, **kw: order.append("T5") or run(*args, **kw))
        owner = next(cls for cls in type(pipe).__mro__ if "check_inputs" in vars(cls))
        check = owner.check_inputs
        watched.setattr(owner, "check_inputs", lambda *args, **kw: order.append("check") or check(*args, **kw))
        latents(pipe, **options)
    return order


def test_t5_begins_with_the_call(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoRecorder(TapeRecorder):
        def runs_on(self, device: torch.device) -> bool:
            return False

    monkeypatch.setattr(recording, "recorder_for", lambda _: NoRecorder())
    assert starts(pipe, monkeypatch) == ["check", "T5"]
    expected = render(pipe)
    with accelerate(pipe, [TextGraphs()], quiet=True) as acceleration:
        assert starts(pipe, monkeypatch) == ["T5", "check"]
        assert acceleration.facts["text_graphs"]["unrecorded"] == {"on the cpu": 6}
        np.testing.assert_array_equal(render(pipe), expected)
        # A scale is given to adapters of the encoders first.
        assert starts(pipe, monkeypatch, joint_attention_kwargs={"scale": 0.5}) == ["check", "T5"]
    with accelerate(pipe, [TextGraphs(), PromptCache()], quiet=True):
        # Which prompts a cache has is known later.
        assert starts(pipe, monkeypatch) == ["check", "T5"]
        assert starts(pipe, monkeypatch) == ["check"]
