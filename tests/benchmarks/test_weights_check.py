from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.gpu.weights_check import OFFLOADINGS, Stages, measure
from tests.pipelines import SIDE, small_pipeline


def test_small_model_is_written_read_and_exchanged(tmp_path: Path) -> None:
    report = Stages({}, tmp_path / "report.json")
    measure(report, small_pipeline(), "balanced", SIDE)
    stored = json.loads((tmp_path / "report.json").read_text())
    errors = stored["relative_error"]
    assert 1e-4 < errors["file"] < 0.1
    assert 1e-4 < errors["balanced"] < 0.1
    # Without a second rounding of the weights, what is left is that of the activations.
    assert errors["balanced of the file, to the file"] < errors["balanced"]
    assert stored["as_stored_original"] is None
    assert stored["as_stored_file"] == 11
    stages = stored["stages"]
    assert {"read", "write", "to_device", "exchange_0", "exchange_1", "exchange_2", "step_after_exchange"} <= set(
        stages
    )
    for method in OFFLOADINGS:
        facts = stored[f"{method}_facts"]
        assert facts["plan"] == "balanced+offload"
        assert facts["equal_to_accelerated"]
        assert facts.get("equal_to_stock", True)
        assert {method, f"{method}_accelerate", f"{method}_second_step", f"{method}_revert"} <= set(stages)
    assert all(measured["seconds"] > 0 for measured in stages.values())


def test_report_is_stored_when_the_minutes_are_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    report = Stages({}, out)
    report.note(gpu="one")
    with report.stage("read"):
        report.give_up()
        assert json.loads(out.read_text()) == {"complete": False, "stages": {}, "gpu": "one"}
    assert codes == [1]
    assert "in the stage read" in capsys.readouterr().err
