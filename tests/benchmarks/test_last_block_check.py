"""The check of the last block, without the times."""

from __future__ import annotations

import pytest

from benchmarks.gpu import last_block_check
from kontext_fast.engine.graphs import recording
from kontext_fast.engine.ops import JointQKV
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.techniques.engine import require_engine
from tests.engine.graphs.taped import TapeRecorder
from tests.pipelines import small_pipeline


def _errors(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    monkeypatch.setattr(recording, "recorder_for", lambda _: TapeRecorder())
    pipe = small_pipeline()
    with accelerate(pipe, "faithful", quiet=True):
        engine = require_engine(pipe.transformer, "engine").engine
        errors: dict[str, float] = last_block_check.compared(pipe, engine, 32, rounds=0)["errors"]
    return errors


def test_last_block_of_outputs_only_is_near_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = _errors(monkeypatch)
    assert len(errors) == 2 * len(last_block_check.ARMS)
    assert max(errors.values()) < 1e-6


def test_queries_of_other_tokens_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    only = JointQKV.only
    monkeypatch.setattr(JointQKV, "only", lambda joint, rows: only(joint, slice(0, rows.stop - rows.start)))
    errors = _errors(monkeypatch)
    assert min(error for arm, error in errors.items() if "whole" not in arm) > last_block_check.ROUNDING
    assert {error for arm, error in errors.items() if "whole" in arm} == {0.0}
