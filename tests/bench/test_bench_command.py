"""The command `kontext bench`, with real failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kontext_fast.bench import bundled_suites
from kontext_fast.cli.bench import _on_gpus
from kontext_fast.cli.main import run
from kontext_fast.errors import InvalidInput
from kontext_fast.records.store import ResultStore

SUITE = """\
name = "short"
presets = ["baseline"]
rounds = 1
items = 1
calls = 1
max_warmup = 0
stable_within = 0.05
steps = [2]
sizes = ["native"]
control = false
guidance = 2.5
deadline_s = 300
seed = 0
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "short.toml"
    path.write_text(SUITE)
    return path


def test_help_names_every_bundled_suite(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--help"]) == 0
    text = "".join(capfd.readouterr().out.split())
    assert f"Whattorun:{','.join(bundled_suites())},orafile" in text


def test_json_names_the_folder_and_the_runs(suite: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--suite", str(suite), "--checkpoint", "tiny", "--device", "cpu", "--steps", "1,2", "--sizes", "64x64"]
    options += ["--calls", "2", "--warmup", "1"]
    assert run(["bench", *options, "--out", str(out), "--json"]) == 0
    output = capfd.readouterr()
    answer = json.loads(output.out.splitlines()[-1])
    assert answer["folder"] == str(out)
    assert [(run_["preset"], run_["status"]) for run_ in answer["runs"]] == [("baseline", "ok")]
    assert "run 1 of 1" in output.err
    result = ResultStore(out).load()
    workloads = [measurement.workload for measurement in result.records[0].measurements]
    assert [(workload.width, workload.height, workload.steps) for workload in workloads] == [(64, 64, 1), (64, 64, 2)]
    # Only one call can be the first of the process.
    assert [measurement.first_call_s is None for measurement in result.records[0].measurements] == [False, True]
    for measurement in result.records[0].measurements:
        assert [sample.warmup for sample in measurement.samples] == [True, True, False, False]
    assert result.command.startswith("kontext bench --suite")
    assert result.command.endswith("--calls 2 --warmup 1")
    assert str(tmp_path) not in result.command


def test_failed_run_fails_the_command(suite: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    suite.write_text(SUITE.replace("deadline_s = 300", "deadline_s = 0.2"))
    assert run(["bench", "--suite", str(suite), "--checkpoint", "tiny", "--out", str(tmp_path / "out")]) == 1
    assert "1 of 1 runs failed (baseline)" in capfd.readouterr().err
    assert ResultStore(tmp_path / "out").load().records[0].status == "timeout"


def test_refused_preset_fails_only_if_no_other_ran(
    suite: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    options = ["bench", "--suite", str(suite), "--checkpoint", "tiny", "--device", "cpu"]
    assert run([*options, "--presets", "compile", "--out", str(tmp_path / "alone")]) == 3
    assert run([*options, "--presets", "compile,baseline", "--out", str(tmp_path / "both")]) == 0
    assert "compile: refused." in capfd.readouterr().out
    records = ResultStore(tmp_path / "both").load().records
    assert sorted((record.preset, record.status) for record in records) == [("baseline", "ok"), ("compile", "refused")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "quik"], "no suite"),
        (["--presets", "baselin"], "did you mean baseline"),
        (["--presets", "baseline,baseline"], "listed twice"),
        (["--steps", "4,x"], "whole numbers"),
        (["--steps", "0"], "steps"),
        (["--sizes", "100x100"], "multiple of 16"),
        (["--rounds", "0"], "rounds"),
        (["--items", "-1"], "items"),
        (["--items", "2", "--calls", "1"], "1 calls cannot measure 2 items"),
        (["--warmup", "-1"], "max_warmup"),
        (["--device", "toaster", "--steps", "1"], "toaster"),
    ],
)
def test_bad_input_is_one_sentence_and_creates_no_folder(
    options: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["bench", "--checkpoint", "tiny", "--out", str(out), *options]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("run 1 of")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not out.exists()


def test_folder_with_other_content_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert run(["bench", "--checkpoint", "tiny", "--out", str(tmp_path)]) == 2
    assert "not empty" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_ctrl_c_prints_one_sentence_and_exits_with_130(suite: Path, tmp_path: Path) -> None:
    suite.write_text(SUITE.replace("calls = 1", "calls = 100000"))
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from kontext_fast.cli.main import main; main()", "bench", "--suite", str(suite)]
    with subprocess.Popen(
        [*command, "--checkpoint", "tiny", "--device", "cpu", "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("run 1 of 1")
        deadline = time.monotonic() + 20
        while not psutil.Process(process.pid).children() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        (sentence,) = process.stderr.read().splitlines()
    assert "interrupted" in sentence
    assert [record.status for record in ResultStore(out).load().records] == ["interrupted"]


def test_gpus_add_a_row_for_each_preset_with_the_engine() -> None:
    presets = ("baseline", "balanced", "turbo(computed=5)")
    assert _on_gpus(presets, 2) == (*presets, "balanced(gpus=2)", "turbo(computed=5,gpus=2)")
    with pytest.raises(InvalidInput, match="--preset balanced"):
        _on_gpus(("baseline",), 2)
    with pytest.raises(InvalidInput, match="at least 2"):
        _on_gpus(presets, 1)
