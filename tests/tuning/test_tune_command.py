"""`kontext tune` as a user meets it: exit codes, the last line, what the folder holds, and a kill at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pytest

from kontext_fast.cli.main import run
from kontext_fast.optimizations.preset_file import read_provenance
from kontext_fast.records.lock import locked_folder
from kontext_fast.tuning.request import TuneRequest
from tests.verify.dense_checkpoint import save_dense_checkpoint
from tests.verify.fake_edits import write_dataset

Kontext = Callable[..., tuple[int, str, str]]
SMALL = ("--evaluations", "3", "--items", 8, "--held-out", 8, "--steps", 4, "--size", "64x64", "--device", "cpu")


@pytest.fixture
def kontext(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kontext:
    """`kontext tune` in an empty folder, without a GPU; returns the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run(["tune", *map(str, arguments)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--precision", "auto"], 2, "add seconds or as_accurate"),
        (["--evaluations", "7", "--as-accurate"], 2, "leave one out"),
        (["--seconds", "1", "--as-accurate"], 2, "give one of them"),
        (["--as-accurate", "--steps", "6"], 2, "fewer evaluations than the 6 steps"),
        (["--evaluations", "1"], 2, "at least 2 evaluations"),
        (["--evaluations", "7,ten"], 2, "not whole numbers"),
        (["--evaluations", "40"], 2, "37 at most"),
        (["--seconds", "-1"], 2, "above 0"),
        (["--checkpoint", "random"], 2, "Random weights make noise"),
        (["--checkpoint", "someone/weights"], 2, "--dataset"),
        (["--checkpoint", "tiny", "--items", "4"], 1, "Cannot tell: 4 items to fit to"),
        (["--resume"], 2, "add --out"),
    ],
)
def test_bad_usage_is_refused_before_anything_is_loaded(
    kontext: Kontext, tmp_path: Path, arguments: list[str], code: int, complaint: str
) -> None:
    answered, out, err = kontext(*arguments)
    assert (answered, out) == (code, "")
    assert complaint in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_too_few_items_cannot_tell_and_leave_no_file(kontext: Kontext, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", 12)
    code, _, err = kontext("--checkpoint", "tiny", "--dataset", dataset, "-o", "out")
    assert code == 1
    assert "12 usable items" in err
    assert not (tmp_path / "out").exists()


def test_a_tuning_writes_presets_page_and_picture(
    kontext: Kontext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = TuneRequest.__init__.__kwdefaults__
    assert defaults is not None
    for name, steps in (("grid", 12), ("reference", 32)):
        monkeypatch.setitem(defaults, name, steps)
    checkpoint, dataset = save_dense_checkpoint(tmp_path / "model"), write_dataset(tmp_path / "data", 16)
    options = ("--checkpoint", checkpoint, "--dataset", dataset, *SMALL, "-o", "out", "--json")
    code, out, err = kontext(*options)
    assert "evaluations of single edits" in err
    answer = json.loads(out.splitlines()[-1])
    (point,) = answer["points"]
    page = Path(answer["page"]).read_text()
    assert (Path("out") / "frontier.png").is_file()
    assert answer["items"] == {"fit": 7, "choose": 1, "held_out": 8}
    assert f"{point['distances']['fitted']['mean']:.4f}" in page
    assert f"{answer['baseline']['in float32']['mean']:.4f}" in page
    assert (code == 0) == (answer["files"] == ["3.toml"])
    assert (point["verdict"] == "passes") == (code == 0), err
    assert str(tmp_path) not in page + json.dumps(answer["points"]) + (Path("out") / "tuning.json").read_text()
    if code == 0:
        provenance = read_provenance(Path("out") / "3.toml")
        assert provenance is not None
        assert (provenance.dtype, provenance.held_out_items) == ("float32", 8)
    assert kontext(*options)[0] == 2
    again, out, _ = kontext(*options, "--resume")
    assert (again, json.loads(out.splitlines()[-1])["points"]) == (code, answer["points"])


def test_a_folder_in_use_is_refused_with_its_holder(kontext: Kontext, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as other:
        holding = locked_folder(tmp_path / "out", "kontext tune -o out")
        other.submit(holding.__enter__).result()
        code, _, err = kontext("--checkpoint", "tiny", "--items", 8, "--held-out", 8, "-o", "out")
        other.submit(holding.__exit__, None, None, None).result()
    assert code == 2
    assert "is in use by `kontext tune -o out`" in err


KILLED = """
import sys
from pathlib import Path
from kontext_fast.tuning.tune import tune
from tests.pipelines import small_pipeline
from tests.tuning.test_tune import OPTIONS, parts_of
pipe = small_pipeline()
print("ready", flush=True)
tune(pipe, parts_of(), Path(sys.argv[1]), checkpoint="small", resume=True, **OPTIONS)
"""


def started(folder: Path) -> subprocess.Popen[str]:
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_at_20_random_moments_give_the_same_file(tmp_path: Path) -> None:
    whole = started(tmp_path / "whole")
    start = perf_counter()
    assert whole.wait() == 0
    seconds, kills, work = perf_counter() - start, 0, tmp_path / "killed" / "work"
    left: set[int] = set()

    def stored() -> int:
        return len(list(work.iterdir())) if work.is_dir() else 0

    for index, share in enumerate(np.random.default_rng(0).uniform(0, 0.05, 20)):
        before, process = stored(), started(tmp_path / "killed")
        # Every other one after a new result, so that the kills come at moments all along the work.
        while index % 2 and process.poll() is None and stored() == before:
            sleep(0.01)
        sleep(float(share) * seconds)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        left.add(stored())
    assert kills >= 15
    assert len(left) >= 5
    last = started(tmp_path / "killed")
    assert last.wait() == 0
    assert (tmp_path / "killed" / "3.toml").read_bytes() == (tmp_path / "whole" / "3.toml").read_bytes()
