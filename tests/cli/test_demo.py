"""`kontext demo`, with a suite of one round that a test has time for; the workers are the real ones."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kontext_fast.analysis.groups import groups
from kontext_fast.bench import suites
from kontext_fast.bench.process import run_worker
from kontext_fast.bench.protocol import Job
from kontext_fast.bench.suites import Suite, read_suite
from kontext_fast.optimizations.presets import H100_SECONDS
from kontext_fast.records.schema import Cell
from kontext_fast.records.store import ResultStore
from kontext_fast.report.gallery import gallery
from tests.records.builder import item, judged, record, result, sample, workload


def short(**changes: Any) -> Suite:
    usual = {"presets": ("baseline", "step_reuse(computed=4)"), "rounds": 1, "control": False, "steps": (2,)}
    return read_suite("demo").resolve("tiny").override(**{**usual, "items": 1, "calls": 1, **changes})


class _Short:
    def resolve(self, _kind: str) -> Suite:
        return short()


def test_demo_shows_the_edit_the_speeds_and_what_to_type(kontext: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "read_suite", lambda _name: _Short())
    shown = kontext("demo", "--out", "here", "--pictures")
    assert shown.code == 0, shown.err
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.out).splitlines()
    # Three pictures of 24 pixels beside each other, two pixels high a letter.
    blocks = [line for line in lines if "\u2580" in line]
    assert [line.count("\u2580") for line in blocks] == [72] * 12
    with Image.open("here/input.png") as picture:
        corner = picture.convert("RGB").resize((24, 24), Image.Resampling.BOX).getpixel((0, 0))
    assert "38;2;{};{};{}".format(*corner) in shown.out  # type: ignore[misc]
    # In two steps baseline gets nothing right, and that is said.
    assert any("baseline gets none of the edits right" in line for line in lines)
    assert Path("here/edited.png").is_file()
    assert Path("here/edited-fast.png").is_file()
    named = [line.split()[0] for line in lines if "\u2588" in line]
    assert sorted(named) == ["baseline", "step_reuse(computed=4)"]
    assert all(len(line) <= 80 for line in lines if "\u2588" in line)
    # One process of each and no control: nothing may be claimed.
    assert not any("faster" in line for line in lines)
    assert lines[-4].startswith("On an H100")
    assert f"turbo {H100_SECONDS['turbo']} s" in lines[-4]
    assert lines[-3] == "This machine: no GPU found."
    assert "kontext edit photo.jpg" in lines[-2]
    assert lines[-1] == f"Page: {Path('here/reports/index.html').absolute()}"
    records = ResultStore(Path("here")).load().records
    assert {record.environment["torch_threads"] for record in records} == {1}
    assert len({record.run_id for record in records}) == 2
    assert shown.err == "run 1 of 2: block 1/1 baseline\nrun 2 of 2: block 1/1 step_reuse(computed=4)\n" or (
        shown.err == "run 1 of 2: block 1/1 step_reuse(computed=4)\nrun 2 of 2: block 1/1 baseline\n"
    )


def test_bundled_suite_can_claim_as_everywhere() -> None:
    suite = read_suite("demo").resolve("tiny")
    assert (suite.control, suite.rounds) == (True, 3)
    assert suite.presets == ("baseline", "step_reuse", "step_reuse(computed=4)")


def test_forked_worker_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    job = Job(
        checkpoint="tiny",
        preset="baseline",
        suite=short(steps=(1000,), calls=1000),
        cells=(Cell(mode="edit", size="native", steps=1000, batch=1),),
        device="cpu",
        keep_images=False,
        folder=str(tmp_path),
    )
    begin = time.monotonic()
    result = run_worker(None, job, variables={}, deadline_s=3, on_progress=lambda _progress: None)
    assert result.cause == "deadline"
    assert "most recent call first" in result.stderr_tail
    assert time.monotonic() - begin < 300


def test_what_baseline_gets_right_comes_first() -> None:
    images = {"a": "1" * 64, "b": "2" * 64, "c": "3" * 64}
    scores = [
        score for name, image in images.items() for score in judged(name, image, done=name != "a", kept=name != "b")
    ]
    run = record(
        "baseline",
        0,
        [sample(name, 1.0, images=[image]) for name, image in images.items()],
        scores=tuple(scores),
        of=workload(tuple(images)),
    )
    (group,) = groups(result([run], [item(name) for name in images]))
    assert [card.item.id for card in gallery(group, [item(name) for name in images]).cards] == ["c", "a", "b"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_whole_demo_measures_three_processes_of_each(kontext: Any) -> None:
    outcome = kontext("demo", "--out", "here", "--json")
    assert outcome.code == 0, outcome.err
    made = json.loads(outcome.out.splitlines()[-1])
    assert made["edit"]["right"]
    records = ResultStore(Path("here")).load().records
    assert len(records) == 12
    assert {run.status for run in records} == {"ok"}
