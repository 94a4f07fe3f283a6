"""A delay that is really there, in one preset, is found by comparing two benchmarks of the bundled checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kontext_fast.bench.runner import WORKER, run_suite
from kontext_fast.bench.suites import read_suite
from kontext_fast.cli.main import run
from kontext_fast.records.store import ResultStore
from kontext_fast.report.comparison import compare

SLOWED = str(Path(__file__).parent / "slowed_worker.py")
ROUNDS = 12


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_delay_of_three_percent_in_one_preset_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before and after take turns, block by block, so that a machine that others use hits both alike."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    suite = read_suite("quick").resolve("tiny").override(
        presets=("baseline", "fuse_qkv"), rounds=ROUNDS, items=1, calls=10, max_warmup=2, steps=(4,)
    )  # fmt: skip
    delayed = (sys.executable, SLOWED, "fuse_qkv=0.03")
    for _ in range(ROUNDS):
        for name, workers in (("a", WORKER), ("b", delayed)):
            # The first block of an invocation is always run, and the budget allows no second one.
            run_suite(suite, tmp_path / name, device="cpu", resume=True, budget_s=1e-9, worker_command=workers)
    before, after = (ResultStore(tmp_path / name).load() for name in "ab")
    found = {change.preset: change for change in compare(before, after, 0.01).changes}
    ratio = found["fuse_qkv"].ratio
    assert ratio is not None
    assert ratio.interval is not None
    assert ratio.interval[0] < 1.03 < ratio.interval[1]
    assert found["fuse_qkv"].outcome == "regression", found
    assert run(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--threshold", "1"]) == 1
    assert "fuse_qkv" in capsys.readouterr().err
    assert run(["compare", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
