"""Graphs of the engine's steps behind a pipeline: the same images, whatever changes between calls, and what is said.

A tape stands in for a CUDA graph: it repeats the same operations at the same addresses, without Python.
"""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from kontext_fast.engine import dispatch
from kontext_fast.engine.graphs import recording
from kontext_fast.engine.ops import PortableOps
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.techniques import engine as technique
from kontext_fast.optimizations.techniques.engine import Engine
from kontext_fast.optimizations.techniques.step_reuse import StepReuse
from tests.engine.graphs.taped import TapeRecorder
from tests.pipelines import render, small_pipeline

PLAIN = Engine(graphs="never")


@pytest.fixture
def pipe() -> Any:
    return small_pipeline()


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> TapeRecorder:
    tapes = TapeRecorder()
    monkeypatch.setattr(recording, "recorder_for", lambda _: tapes)
    monkeypatch.setattr(technique, "tokens_for_graphs", lambda _: 1000)
    return tapes


def test_card_and_tokens_decide_by_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("H100", "A100")
    monkeypatch.setattr(dispatch, "STEP_GRAPHS_UP_TO", {"H100": 4000})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA {names[device.index]} 80GB HBM3")
    tokens = [dispatch.tokens_for_graphs(torch.device(name)) for name in ("cuda:0", "cuda:1", "cpu")]
    assert tokens == [4000, 0, 0]


def test_reason_is_given_where_no_step_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    with ExitStack() as undo:
        assert PLAIN._step_graphs(cuda, None, undo) == (None, None)
        monkeypatch.setattr(technique, "tokens_for_graphs", lambda _: 0)
        assert Engine()._step_graphs(cuda, None, undo) == (None, "off: no row for this card")
        assert Engine()._step_graphs(cpu, None, undo) == (None, None)


def test_steps_of_several_gpus_are_recorded_at_every_size(
    recorder: TapeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(recording, "recorder_for", lambda device: asked.append(device) or recorder)
    parallel: Any = SimpleNamespace(ranks=SimpleNamespace(everywhere=all))
    with ExitStack() as undo:
        graphs, facts = Engine(gpus=2)._step_graphs(torch.device("cuda"), parallel, undo)
        assert graphs is not None
        assert (graphs.most_tokens, facts) == (None, graphs.facts)
        assert (graphs._calls._recorder, graphs._calls._everywhere) == (recorder, all)
        alone, _ = Engine()._step_graphs(torch.device("cuda"), None, undo)
        assert alone is not None
        assert (alone.most_tokens, alone._calls._recorder) == (1000, recorder)
    assert asked == [torch.device("cuda")] * 2


def test_steps_are_replayed_with_the_same_images(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with accelerate(pipe, [PLAIN], quiet=True) as plain:
        expected = [render(pipe, photo=photo, negative="blurry", steps=2) for photo in range(2)]
        assert plain.facts["engine"]["step_graphs"] is None
    with accelerate(pipe, [Engine()], quiet=True) as acceleration:
        facts = acceleration.facts["engine"]["step_graphs"]
        np.testing.assert_array_equal(render(pipe, negative="blurry", steps=2), expected[0])
        # Both branches of true CFG have one layout, and so one graph.
        assert facts == {
            "up_to_tokens": 1000, "graphs": 1, "replays": 2, "record_s": facts["record_s"], "pool_bytes": 1000,
            "unrecorded": {"first of its layout": 1, "recorded": 1},
        }  # fmt: skip
        monkeypatch.setattr(PortableOps, "gelu", lambda *_, **__: pytest.fail("Python ran"))
        np.testing.assert_array_equal(render(pipe, photo=1, negative="blurry", steps=2), expected[1])
        assert facts["replays"] == 6
    assert facts["graphs"] == 0


def test_graphs_follow_reused_steps_and_new_weights(pipe: Any) -> None:
    chosen = [Engine(), StepReuse(computed=(0, 2, 3))]
    with accelerate(pipe, chosen, quiet=True) as acceleration:
        for _ in range(2):
            before = render(pipe)
        assert acceleration.last_step_kinds() == ["full", "skipped", "full", "full"]
        assert acceleration.facts["engine"]["step_graphs"]["replays"] == 4
        # In bf16 the engine reads the pipeline's own weights; a graph reads them anew.
        pipe.transformer.proj_out.weight.data.mul_(0.5)
        after = render(pipe)
    with accelerate(pipe, [PLAIN, chosen[1]], quiet=True):
        np.testing.assert_array_equal(after, render(pipe))
    assert not np.array_equal(before, after)


def test_exchanged_adapters_are_recorded_anew(pipe: Any, recorder: TapeRecorder) -> None:
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "proj_mlp"], init_lora_weights=False), "style")
    with accelerate(pipe, [Engine()], quiet=True) as acceleration:
        before = render(pipe, steps=3)
        acceleration.set_adapters("style", 0.5)
        assert acceleration.facts["engine"]["step_graphs"]["graphs"] == 0
        after = render(pipe, steps=3)
        assert recorder.recorded == 2
    with accelerate(pipe, [PLAIN], quiet=True):
        np.testing.assert_array_equal(after, render(pipe, steps=3))
    assert not np.array_equal(before, after)
