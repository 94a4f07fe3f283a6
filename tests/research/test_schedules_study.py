"""The study of schedules: its verdicts, and a small study from end to end, stopped and resumed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kontext_fast.engine.flops import FULL_SIZE_EDIT
from kontext_fast.optimizations.presets import resolve
from kontext_fast.optimizations.techniques.engine import Engine
from kontext_fast.pipeline.device import Machine


def _run(family: str, name: str, work: float, accepted: float, distance: float) -> dict[str, Any]:
    """40 open items and 40 with one answer, of which the first are accepted."""
    rows = [
        {"item": f"{number}-{is_open}", "seed": 0, "open": is_open, "done": number < 40 * accepted, "kept": True,
         "pixel_distance": distance + 0.001 * (number % 5), "latent_distance": distance, "work": work}
        for number in range(40) for is_open in (True, False)
    ]  # fmt: skip
    return {"candidate": {"family": family, "name": name}, "kinds": None, "seconds": 1.0, "rows": rows}


SETUP = {"items": 80, "seeds": 1, "steps": 28, "precision": "bf16", "device": "cpu", "checkpoint": "made up"}
LINES = [
    {"setup": SETUP},
    _run("full", "28 steps", 100.0, 0.9, 0.0),
    _run("fewer steps", "14 steps", 50.0, 0.9, 0.10),
    _run("fewer steps", "7 steps", 25.0, 0.6, 0.20),
    _run("step_reuse", "nearer", 50.0, 0.9, 0.05),
    _run("step_reuse", "as near", 49.0, 0.9, 0.10),
    _run("step_reuse", "farther", 40.0, 0.9, 0.15),
    _run("both", "nearer but rejected", 45.0, 0.5, 0.05),
    _run("both", "accepted more often", 25.0, 0.9, 0.25),
    _run("reference_reuse", "more work than fourteen steps", 51.0, 0.5, 0.0),
]


@pytest.mark.parametrize(
    ("name", "rival", "verdict"),
    [
        ("nearer", "14 steps", "better"),
        ("as near", "14 steps", "no difference seen"),
        ("farther", "14 steps", "worse"),
        ("nearer but rejected", "14 steps", "worse"),
        ("accepted more often", "7 steps", "better"),
        ("more work than fourteen steps", "the full run", "worse"),
    ],
)
def test_technique_is_compared_with_fewer_steps_of_equal_work(name: str, rival: str, verdict: str) -> None:
    from research.schedules.picture import findings

    (finding,) = (finding for finding in findings(LINES) if finding.name == name)
    assert (finding.rival, finding.verdict) == (rival, verdict)


def test_too_few_items_give_no_verdict() -> None:
    from research.schedules.picture import findings

    few = [LINES[0], *({**line, "rows": line["rows"][:20]} for line in LINES[1:])]
    assert {finding.verdict for finding in findings(few)} == {"not measured"}


def test_front_excludes_dominated_candidates() -> None:
    from research.schedules.picture import findings

    front = {finding.name for finding in findings(LINES) if finding.on_front}
    assert "28 steps" in front
    assert "more work than fourteen steps" not in {finding.name for finding in findings(LINES[:-1]) if finding.on_front}
    assert "14 steps" not in front  # `as near` takes less work


def test_candidates_are_distinct_and_can_be_planned() -> None:
    from research.schedules.candidates import FULL, candidates

    all_candidates = candidates(28, Engine())
    identities = {json.dumps(candidate.identity(), sort_keys=True) for candidate in all_candidates}
    assert len(identities) == len(all_candidates)
    assert len({(candidate.family, candidate.name) for candidate in all_candidates}) == len(all_candidates)
    assert all_candidates[0].family == FULL
    for candidate in all_candidates:
        resolve(candidate.optimizations, Machine.detect("cpu"))
    assert all(candidate.steps <= 4 for candidate in candidates(4, Engine()))


def test_work_is_that_of_a_full_size_edit() -> None:
    from research.schedules.candidates import full_step, work_of

    assert work_of(["full"] * 3).total == pytest.approx(3 * full_step())
    assert FULL_SIZE_EDIT.total == 8704
    assert work_of(["full", "skipped"]).total == pytest.approx(full_step())


def test_study_resumes_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from research.schedules import study

    def run_study(*options: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(
            sys, "argv",
            ["study.py", "--out", str(tmp_path), "--items", "3", "--seeds", "1", "--steps", "3", "--device",
             "cpu", "--judges", "1", *options],
        )  # fmt: skip
        assert study.main() == 0
        return study.read_lines(tmp_path / "study.jsonl")

    first = run_study("--batch", "2", "--first", "2")
    assert [line["candidate"]["family"] for line in first[1:]] == ["full", "fewer steps"]
    with (tmp_path / "study.jsonl").open("a") as file:
        file.write('{"candidate": "cut o')
    later = run_study("--batch", "2", "--first", "4")
    assert later[: len(first)] == first
    assert [line["candidate"]["family"] for line in later[3:]] == ["step_reuse", "step_reuse"]
    rows = {line["candidate"]["family"]: line["rows"] for line in later[1:]}
    assert all(row["pixel_distance"] == row["latent_distance"] == 0 for row in rows["full"])
    assert all(row["latent_distance"] > 0 for row in rows["fewer steps"])
    assert np.mean([row["work"] for row in rows["fewer steps"]]) == pytest.approx(rows["full"][0]["work"] * 2 / 3)
    assert (tmp_path / "pareto.png").stat().st_size > 10_000
    assert "step_reuse" in (tmp_path / "pareto.md").read_text()
    with pytest.raises(SystemExit, match="another study"):
        run_study("--batch", "3")
