"""`kontext edit --manifest` and `--facts`: images as files, facts as Parquet, and a second run does what is missing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pyarrow import parquet

from kontext_fast.cli.rows.facts import COLUMNS, FactsFile
from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.pipeline.edit import edit
from kontext_fast.pipeline.images import read_origin

TINY = ("--checkpoint", "tiny", "--steps", "1", "--preset", "baseline")


def pictures(folder: Path, count: int) -> list[dict[str, Any]]:
    """Rows of `count` images, written into `folder`."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(1, count + 1):
        Image.effect_noise((64, 64), 10 + number % 80).convert("RGB").save(folder / f"{number}.png")
        row = {"image": f"{folder.name}/{number}.png", "instruction": "make it red", "output": f"{number}.png"}
        rows.append({**row, "seed": number, "size": "64x64"})
    return rows


def written(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def facts_in(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(folder / "facts.parquet").to_pylist()
    return rows


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    rows = pictures(tmp_path / "in", 4)
    (tmp_path / "in" / "2.png").write_text("no image")
    rows[3] |= {"checkpoint": "./nowhere"}
    return rows


def test_rows_become_files_and_missing_ones_run_again(kontext: Any, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    manifest = written(tmp_path / "edits.jsonl", [*rows, {"image": "in/1.png", "steps": "many"}])
    outcome = kontext("edit", "--manifest", manifest, *TINY, "--json")
    result = json.loads(outcome.out.splitlines()[-1])
    folder = tmp_path / "edits.edited"
    assert outcome.code == 2
    assert "3 of 5 images were not made" in outcome.err
    assert [image["path"] for image in result["images"]] == [str(folder / "1.png"), str(folder / "3.png")]
    assert {entry["input"] for entry in result["failed"]} == {"row 2", "row 4", "row 5"}
    facts = facts_in(folder)
    assert list(facts[0]) == list(COLUMNS)
    assert [row["row"] for row in facts] == [1, 2, 3, 4, 5]
    assert [bool(row["error"]) for row in facts] == [False, True, False, True, True]
    assert "not an image" in facts[1]["error"]
    assert "nowhere" in facts[3]["error"]
    good = facts[2]
    assert good["seconds"] > 0
    assert (good["output"], good["seed"], good["preset"], good["width"], good["height"]) == (
        *("3.png", 3, "baseline", 64, 64),
    )
    assert (good["steps"], good["computed_steps"], good["checkpoint"], good["error"]) == (1, 1, "tiny", None)
    assert read_origin(folder / "3.png")["seed"] == "3"
    assert sorted(path.name for path in folder.iterdir()) == ["1.png", "3.png", "facts.parquet"]

    # The broken image and the checkpoint are mended: those two alone are made, and what is there keeps its facts.
    pictures(tmp_path / "in", 2)
    os.utime(tmp_path / "in" / "1.png", (1, 1))
    written(manifest, [{key: value for key, value in row.items() if key != "checkpoint"} for row in rows])
    again = json.loads(kontext("edit", "--manifest", manifest, *TINY, "--json").out)
    assert [Path(image["path"]).name for image in again["images"]] == ["2.png", "4.png"]
    assert again["skipped"] == [str(folder / "1.png"), str(folder / "3.png")]
    assert [row for row in facts_in(folder) if row["row"] in (1, 3)] == [facts[0], facts[2]]
    assert not any(row["error"] for row in facts_in(folder))

    # A row that asks for something else than what is there is a row with that reason.
    rows[0]["seed"] = 9
    written(manifest, rows[:1])
    outcome = kontext("edit", "--manifest", manifest, *TINY)
    assert outcome.code == 2
    assert "is there already and was made with seed '1': add --overwrite" in facts_in(folder)[0]["error"]
    assert read_origin(folder / "1.png")["seed"] == "1"


def interrupted_at_the_third_edit(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests of the edits, as they come; the third one is stopped as by Ctrl-C, others run."""
    calls: list[Any] = []

    def stopping(pipe: Any, request: Any, **options: Any) -> Any:
        calls.append(request)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return edit(pipe, request, **options)

    monkeypatch.setattr("kontext_fast.pipeline.edit.edit", stopping)
    return calls


def test_interrupted_run_keeps_facts_and_goes_on(kontext: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "in", 4)
    calls = interrupted_at_the_third_edit(monkeypatch)
    line = ("edit", tmp_path / "in", "make it red", *TINY, "-o", tmp_path / "out", "--facts", "out/facts.parquet")
    outcome = kontext(*line)
    assert (outcome.code, len(outcome.out.splitlines())) == (130, 2)
    assert "Interrupted after 2 of 4 images" in outcome.err
    first = facts_in(tmp_path / "out")
    assert [row["output"] for row in first] == ["1.edited.png", "2.edited.png"]
    assert kontext(*line).code == 0
    assert len(calls) == 5
    facts = facts_in(tmp_path / "out")
    assert [row["row"] for row in facts] == [1, 2, 3, 4]
    assert facts[:2] == first
    assert min(row["seconds"] for row in facts) > 0


def test_facts_of_images_without_them_are_read_from_files(kontext: Any, tmp_path: Path) -> None:
    pictures(tmp_path / "in", 1)
    line = ("edit", tmp_path / "in", "make it red", *TINY, "--seed", "3")
    assert kontext(*line).code == 0
    assert kontext(*line, "--facts", "facts.parquet").code == 0
    (row,) = facts_in(tmp_path)
    assert (row["output"], row["seed"], row["checkpoint"], row["seconds"]) == ("in/1.edited.png", 3, "tiny", None)


def test_mistakes_of_a_manifest_are_one_line(kontext: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = written(tmp_path / "edits.jsonl", pictures(tmp_path / "in", 1))
    for arguments, words in {
        ("-n", "2"): "write a row for each further image",
        ("a.png", "make it red"): "A manifest names its images",
        ("--facts", "facts.csv"): "does not end in .parquet",
        ("--facts", "no/where/facts.parquet"): "There is no folder no",
    }.items():
        outcome = kontext("edit", "--manifest", manifest, *TINY, *arguments)
        assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
        assert words in outcome.err
    monkeypatch.setattr("kontext_fast.cli.rows.facts.find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"kontext-fast\[tables\]"):
        FactsFile(tmp_path / "facts.parquet")


def test_two_runs_of_one_facts_file_are_refused(tmp_path: Path) -> None:
    facts = FactsFile(tmp_path / "facts.parquet")
    other = f"from kontext_fast.cli.rows.facts import *\nwith FactsFile(Path({str(facts.path)!r})).writing(): pass"
    with facts.writing():
        done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, timeout=120)
        assert "is in use by" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_torn_line_of_facts_says_nothing(tmp_path: Path) -> None:
    facts = FactsFile(tmp_path / "facts.parquet")
    (tmp_path / "a.png").touch()
    with facts.writing():
        facts.record({"output": str(tmp_path / "a.png"), "row": 1, "seed": 4, "seconds": 1.5})
        (facts.parts / "other.jsonl").write_text('{"output": "b.png", "ro')
        facts.finish([], [])
    (row,) = facts_in(tmp_path)
    assert (row["output"], row["seed"], row["seconds"]) == ("a.png", 4, 1.5)
    facts.path.write_text("no table")
    with facts.writing(), pytest.raises(InvalidInput, match="no readable Parquet file"):
        facts.finish([], [])


@pytest.mark.slow
def test_run_that_is_killed_five_times_makes_every_image_once(tmp_path: Path) -> None:
    """At random moments with SIGKILL; every image that was there after a kill is the same file at the end."""
    manifest = written(tmp_path / "edits.jsonl", pictures(tmp_path / "in", 60))
    command = [sys.executable, "-m", "kontext_fast", "edit", "--manifest", str(manifest), *TINY]
    folder, moments, kept = tmp_path / "edits.edited", random.Random(5), dict[str, int]()
    for _ in range(5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(list(folder.glob("*.png")))
        while len(list(folder.glob("*.png"))) < before + 3 and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        present = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
        assert kept.items() <= present.items()
        kept = present
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}.items()
    facts = facts_in(folder)
    assert [row["row"] for row in facts] == list(range(1, 61))
    assert all(row["seconds"] is not None and row["error"] is None for row in facts)
