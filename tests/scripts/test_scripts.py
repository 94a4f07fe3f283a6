"""The entry points that the original project's instructions name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kontext_fast.records.store import ResultStore
from tests.bench.test_bench_command import SUITE
from tests.records import builder
from tests.server.processes import server

ROOT = Path(__file__).parents[2]


def python(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )


def write_result(folder: Path, written_at: float) -> None:
    store = ResultStore(folder)
    store.write(builder.full(store))
    os.utime(store.records_file, (written_at, written_at))


SCRIPTS = (*sorted(path.relative_to(ROOT) for path in ROOT.glob("scripts/*.py")), Path("flux_kontext_standalone.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_help_of_a_script_runs_nothing(tmp_path: Path, script: Path) -> None:
    done = python(str(script), "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.lower().startswith("usage: ")
    assert list(tmp_path.iterdir()) == []


def test_suite_script_takes_the_options_of_bench(tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text(SUITE)
    done = python("scripts/benchmark_suite.py", "--suite", "short.toml", "--out", "result", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The checkpoint is tiny, since" in done.stderr
    assert ResultStore(tmp_path / "result").load().suite == "short"


def test_visualizer_renders_the_newest_result(tmp_path: Path) -> None:
    write_result(tmp_path / "newer", 2_000_000_000)
    write_result(tmp_path / "older", 1_000_000_000)
    done = python("scripts/benchmark_visualizer.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The records are those in newer" in done.stdout
    assert (tmp_path / "newer" / "reports" / "index.html").is_file()
    assert not (tmp_path / "older" / "reports" / "index.html").exists()


def test_visualizer_without_results_names_kontext_bench(tmp_path: Path) -> None:
    done = python("scripts/benchmark_visualizer.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "kontext bench" in done.stderr


def test_requirements_pin_what_is_tested() -> None:
    for name in ("requirements.txt", "requirements_benchmark.txt"):
        lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
        for line in lines:
            option, _, target = line.partition(" ")
            assert option in ("-c", "-r", "-e")
            assert (ROOT / target).exists()


@pytest.mark.slow
def test_standalone_serves_the_original_s_route(tmp_path: Path) -> None:
    with server(tmp_path, command=(sys.executable, str(ROOT / "flux_kontext_standalone.py"))) as running:
        answer = running.client.post("/inference", json={"prompt": "a red circle", "steps": 1, "seed": 2}).json()
        assert "the checkpoint is tiny" in running.log()
    assert (answer["seed"], answer["kontext"]["steps"]) == (2, 1)
    assert answer["images"][0].startswith("data:image/png;base64,")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_demo_script_measures_and_reports(tmp_path: Path) -> None:
    done = python("scripts/run_benchmark_demo.py", "demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "reports" / "index.html").is_file()
    assert {record.status for record in ResultStore(tmp_path / "demo").load().records} <= {"ok", "refused"}
