"""The check of what presets have on CUDA, with tapes in place of CUDA graphs."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.gpu import presets_check
from kontext_fast.engine.graphs import recording
from tests.engine.graphs.taped import TapedRecording, TapeRecorder
from tests.pipelines import SIDE, small_pipeline


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    tapes = TapeRecorder()
    monkeypatch.setattr(recording, "recorder_for", lambda _: tapes)
    return small_pipeline()


@pytest.mark.parametrize("preset", ["faithful", "low_memory"])
def test_equal_images_with_facts_are_right(pipe: Any, preset: str) -> None:
    outcome = presets_check.compared(pipe, preset, (SIDE, SIDE), 1)
    assert presets_check.is_right(outcome)
    assert outcome["facts"]["device_pixels"]["read"] == 6
    assert ("text_graphs" in outcome["facts"]) == (preset == "faithful")


def test_other_text_or_nothing_done_is_wrong(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def replay_other(self: Any) -> None:
        for output, value in zip(self.outputs, self._tape.run(), strict=True):
            output.copy_(value)
        self.runs = getattr(self, "runs", 0) + 1
        if self.runs > 1:
            self.outputs[0].mul_(3)

    monkeypatch.setattr(TapedRecording, "replay", replay_other)
    assert not presets_check.compared(pipe, "faithful", (SIDE, SIDE), 2)["equal"]
    idle = {"equal": True, "facts": {"text_graphs": {"replays": 0}, "device_pixels": {"read": 1, "written": 1}}}
    assert not presets_check.is_right(idle)
