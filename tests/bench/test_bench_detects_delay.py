"""Comparing two benchmarks of the bundled checkpoint detects a real delay, and reports none between equals.

The three sides (before, after, and before again) alternate process by process. The clock is that of `slowed_worker`,
since wall-clock time on a busy machine cannot resolve three percent.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kontext_fast.analysis.comparison import REGRESSIONS, Change, compare
from kontext_fast.bench.runner import run_suite
from kontext_fast.bench.suites import read_suite
from kontext_fast.cli.main import run
from kontext_fast.records.store import ResultStore

SLOWED = str(Path(__file__).parent / "slowed_worker.py")
DELAY = 0.03
SIDES = {"before": 0.0, "after": DELAY, "again": 0.0}
FEWEST, MOST = 4, 12
"""Processes per side; more than the minimum only if the machine is too noisy to detect the delay."""
CALLS = 80


def change(folder: Path, after: str, threshold: float) -> Change:
    before, later = (ResultStore(folder / name).load() for name in ("before", after))
    (only_change,) = compare(before, later, threshold).changes
    return only_change


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_delay_of_three_percent_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    suite = read_suite("quick").resolve("tiny").override(
        presets=("fuse_qkv",), control=False, rounds=MOST, items=1, calls=CALLS, max_warmup=1, steps=(2,),
        sizes=("64x64",),
    )  # fmt: skip
    for processes in range(1, MOST + 1):
        for name, delay in SIDES.items():
            workers = (sys.executable, SLOWED, str(delay))
            # The first block of an invocation is always run, and the budget allows no second one.
            run_suite(suite, tmp_path / name, device="cpu", resume=True, budget_s=1e-9, worker_command=workers)
        # Stops by the smallest detectable change, never by the measured one.
        detectable = change(tmp_path, "after", 0.01).detectable if processes >= FEWEST else None
        if detectable is not None and detectable < 0.6 * DELAY:
            break
    slower, same = change(tmp_path, "after", 0.01), change(tmp_path, "again", 0.015)
    assert slower.outcome == "regression", slower
    assert slower.ratio is not None
    assert abs(slower.ratio.value - (1 + DELAY)) < 0.015, slower
    assert same.outcome not in REGRESSIONS, same
    assert same.ratio is not None
    assert abs(same.ratio.value - 1) < 0.015, same
    assert run(["compare", str(tmp_path / "before"), str(tmp_path / "after"), "--threshold", "1"]) == 1
    assert "fuse_qkv" in capsys.readouterr().err
    assert run(["compare", str(tmp_path / "before"), str(tmp_path / "again"), "--threshold", "1.5"]) == 0
