"""The check of what surrounds the transformer, with tapes in place of CUDA graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.gpu import overhead_check
from kontext_fast.engine.graphs import recording
from tests.engine.graphs.taped import TapedRecording, TapeRecorder
from tests.pipelines import SIDE, small_pipeline


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    tapes = TapeRecorder()
    monkeypatch.setattr(recording, "recorder_for", lambda _: tapes)
    return small_pipeline()


def test_every_comparison_finds_equal_bits(pipe: Any) -> None:
    report = overhead_check.measured(pipe, SIDE, calls=1)
    assert report["equal"] == dict.fromkeys(report["equal"], True)
    assert len(report["equal"]) == 12
    assert report["facts"]["text_graphs"]["replays"] > 0
    assert {"pixels in", "text", "encode", "decode", "pixels out", "whole call"} <= set(report["ms"])


def test_replay_of_old_embeddings_is_found(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def replay_first(self: Any) -> None:
        values = self._tape.run()
        if not hasattr(self, "first"):
            self.first = [value.clone() for value in values]
        for output, value in zip(self.outputs, self.first, strict=True):
            output.copy_(value)

    monkeypatch.setattr(TapedRecording, "replay", replay_first)
    equal = overhead_check.measured(pipe, SIDE, calls=1)["equal"]
    assert not equal["embeddings, again"]
    assert not equal["images in threads"]
    assert equal["images after revert"]


def test_comparison_needs_every_bit() -> None:
    x = torch.ones(2)
    assert overhead_check._same([[x]], [[x.clone()]])
    assert not overhead_check._same([[x]], [[x + 1e-6]])
    assert not overhead_check._same([[]], [[]])
