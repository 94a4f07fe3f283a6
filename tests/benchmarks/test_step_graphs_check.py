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


def test_step_graph_of_old_inputs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    tapes = TapeRecorder()
    monkeypatch.setattr(recording, "recorder_for", lambda _: tapes)
    monkeypatch.setattr(step_graphs_check, "TIMED", {})
    replay: Any = TapedRecording.replay

    def replay_first_of_two(self: Any) -> None:
        if len(self.outputs[0]) != 2:
            replay(self)
        elif not hasattr(self, "first"):
            replay(self)
            self.first = self.outputs[0].clone()
        else:
            self.outputs[0].copy_(self.first)

    monkeypatch.setattr(TapedRecording, "replay", replay_first_of_two)
    report = step_graphs_check.measured(small_pipeline(), "faithful", [SIDE], rounds=0)
    alone, together = f"{SIDE}x{SIDE}, 1 at once", f"{SIDE}x{SIDE}, 2 at once"
    assert report["equal"] == {
        f"{alone}, turn 1": True,
        f"{together}, turn 1": False,
        f"{alone}, turn 2": True,
        f"{together}, turn 2": False,
        "true CFG": True,
        "copies in threads": True,
    }
    assert report["facts"]["graphs"] == 0
    assert report["recorded"][alone]["record_s"] > 0


def test_slower_host_spins_at_each_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_graphs_check, "SPIN_US", 30_000.0)
    ops, x = PortableOps(), torch.ones(1, 1, 2)
    with step_graphs_check._slower(SimpleNamespace(ops=ops)):
        for call in (lambda: ops.gelu(x, quantize=False), lambda: ops.prepare(x, quantize=True)):
            began = time.perf_counter()
            call()
            assert time.perf_counter() - began >= 0.03
    assert not {"gelu", "prepare"} & set(vars(ops))
