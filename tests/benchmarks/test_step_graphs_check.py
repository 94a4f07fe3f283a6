"""The check of steps as CUDA graphs, with tapes in place of graphs."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import step_graphs_check
from kontext_fast.engine.graphs import recording
from kontext_fast.engine.ops import PortableOps
from tests.engine.graphs.taped import TapedRecording, TapeRecorder
from tests.pipelines import small_pipeline

SIDE = 32


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    tapes = TapeRecorder()
    monkeypatch.setattr(recording, "recorder_for", lambda _: tapes)
    monkeypatch.setattr(step_graphs_check, "MORE_STEPS", 1)
    return small_pipeline()


def test_every_step_graph_has_the_same_bits(pipe: Any) -> None:
    report = step_graphs_check.measured(pipe, "faithful", [SIDE], rounds=1)
    assert report["equal"] == dict.fromkeys(report["equal"], True)
    assert len(report["equal"]) == 6
    assert report["facts"]["replays"] > 0
    assert [of["record_s"] > 0 for of in report["recorded"].values()] == [True, True]
    assert {label for of_host in report["ms_per_step"][str(SIDE)].values() for label in of_host} == {"with", "without"}


def test_step_graph_of_old_inputs_is_found(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TapedRecording, "replay", _replay_first)
    monkeypatch.setattr(step_graphs_check, "TIMED", {})
    equal = step_graphs_check.measured(pipe, "faithful", [SIDE], rounds=0)["equal"]
    assert not equal[f"{SIDE}x{SIDE}, 1 at once, turn 1"]
    assert not equal["copies in threads"]


def test_slower_host_spins_at_each_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_graphs_check, "SPIN_US", 30_000.0)
    ops, x = PortableOps(), torch.ones(1, 1, 2)
    with step_graphs_check._slower(SimpleNamespace(ops=ops)):
        for call in (lambda: ops.gelu(x, quantize=False), lambda: ops.prepare(x, quantize=True)):
            began = time.perf_counter()
            call()
            assert time.perf_counter() - began >= 0.03
    assert not {"gelu", "prepare"} & set(vars(ops))


def _replay_first(self: Any) -> None:
    if not hasattr(self, "first"):
        self.first = [value.clone() for value in self._tape.run()]
    for output, value in zip(self.outputs, self.first, strict=True):
        output.copy_(value)
