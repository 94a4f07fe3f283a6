"""Comparing output by output tells more of stored distances, and is no more often wrong at the limit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kontext_fast.records.store import ResultStore
from kontext_fast.verify.analysis import ArmScores
from research import paired_outputs

FOLDER = Path(__file__).parents[2] / "results" / "h100" / "2026-11-26-tiny-verify"


@pytest.fixture(scope="module")
def arms() -> ArmScores:
    return ArmScores(ResultStore(FOLDER).load().records)


@pytest.mark.parametrize("preset", ["faithful", "balanced", "classic"])
def test_outputs_tell_more_than_means_of_seeds(arms: ArmScores, preset: str) -> None:
    above, below = paired_outputs.distances_of_controls(arms, preset)
    assert above.shape == below.shape == (50, 2)
    means = above.mean(-1, keepdims=True), below.mean(-1, keepdims=True)
    assert paired_outputs.spread(above, below) < 0.9 * paired_outputs.spread(*means)
    told = paired_outputs.rate(above, below, 26, 1.3, 100)
    assert told > paired_outputs.rate(*means, 26, 1.3, 100) + 0.05
    at_limit = paired_outputs.rate(above, below, 26, 1.0, 100)
    assert at_limit <= paired_outputs.rate(*means, 26, 1.0, 100) < 0.25


def test_rates_are_stored_by_preset_items_and_multiple(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired_outputs, "COUNTS", (16,))
    monkeypatch.setattr(paired_outputs, "SCALES", (3.0,))
    out = tmp_path / "rates.json"
    paired_outputs.main(["--records", str(FOLDER), "--out", str(out), "--simulations", "3"])
    found = json.loads(out.read_text())["rates"]
    assert [row["preset"] for row in found][:2] == ["faithful", "balanced"]
    assert {row["outputs"] for row in found} == {1.0}
