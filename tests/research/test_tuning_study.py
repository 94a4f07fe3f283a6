"""The study of fitted solvers: its changed weights, its kinds of edits, and a part of it from end to end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from kontext_fast.datasets.shapes.edits import EDIT_KINDS
from kontext_fast.optimizations import presets
from kontext_fast.tuning.parts import shapes_parts
from research.tuning import study


def test_low_rank_changes_have_the_strength_and_rank_asked_for() -> None:
    attention = torch.nn.ModuleDict({"to_q": torch.nn.Linear(48, 32)})
    transformer = torch.nn.ModuleDict({"block": torch.nn.ModuleDict({"attn": attention})})
    layer = attention["to_q"].weight
    assert isinstance(layer, torch.Tensor)
    before = layer.detach().clone()
    study.add_low_rank(transformer, 0.1)
    change = (layer - before).detach()
    assert float(change.norm() / before.norm()) == pytest.approx(0.1, rel=1e-3)
    assert int(torch.linalg.matrix_rank(change, rtol=1e-3)) == 4


def test_parts_of_kinds_share_none_and_keep_their_seeds() -> None:
    part = shapes_parts(items=8, held_out=40).held_out
    first = frozenset(EDIT_KINDS[: len(EDIT_KINDS) // 2])
    halves = [study._of_kinds(part, kinds) for kinds in (first, frozenset(EDIT_KINDS) - first)]
    assert {item.kind for item in halves[0].items} <= first
    assert not {item.kind for item in halves[1].items} & first
    assert sorted(seed for half in halves for seed in half.seeds) == sorted(part.seeds)


def test_the_folder_of_a_tuning_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["study", "confirm", "--out", str(tmp_path / "rows.json"), "--device", "cpu"])
    with pytest.raises(SystemExit):
        study.main()
    assert "give the folder of a tuning" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_images_of_a_tuning_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(presets.__file__).with_name("fitted")
    (tmp_path / "10.toml").write_text((folder / "tuned-10.toml").read_text().replace('"tuned-10"', '"mine"', 1))
    out = tmp_path / "rows.json"
    arguments = ["study", "images", str(tmp_path), "--out", str(out), "--device", "cpu", "--items", "8"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert study.main() == 0
    rows = {row["rule"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == {"plain steps, 28", "plain steps, 10", "steps of fast", "steps of turbo", "fitted, 10"}
    assert rows["plain steps, 28"]["distances_to_28_steps"]["mean"] < 1e-6
    assert (
        rows["fitted, 10"]["distances_to_28_steps"]["median"]
        < rows["plain steps, 10"]["distances_to_28_steps"]["median"]
    )
    assert rows["plain steps, 28"]["accepted"]["of"] == 8
    assert rows["plain steps, 28"]["accepted"]["accepted"] >= 5
