"""A benchmark that is killed, cut short or moved, and resumed: no finished run is lost or repeated."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from kontext_fast.bench.environment import FOLDER
from kontext_fast.bench.runner import run_suite
from kontext_fast.cli.main import run as run_command
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import Record
from kontext_fast.records.store import ResultStore
from tests.bench.test_bench_runner import faulty, suite_of

PRESETS = ("baseline", "compile", "classic")
SWEEPS = ({"name": "steps", "priority": 1, "steps": (4, 8), "rounds": 1},)

DRIVER = """
import sys
from pathlib import Path
from kontext_fast.bench.runner import run_suite
from tests.bench.test_bench_resume import PRESETS, SWEEPS
from tests.bench.test_bench_runner import faulty, suite_of
suite = suite_of(*PRESETS, rounds=int(sys.argv[2]), sweeps=SWEEPS, control=True)
run_suite(suite, Path(sys.argv[1]), resume=True, worker_command=faulty(**dict.fromkeys(PRESETS, "takes_its_time")))
"""


def started(out: Path, rounds: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(out), str(rounds)], cwd=Path(__file__).parents[2])


def recorded(out: Path) -> tuple[Record, ...]:
    """The records so far; loading them validates the file."""
    store = ResultStore(out)
    return store.load().records if store.records_file.exists() else ()


def check_kills_of_the_parent(out: Path, rounds: int, kills: int, seed: int) -> None:
    moments = random.Random(seed)
    before: tuple[Record, ...] = ()
    hits = 0
    for _ in range(kills):
        with started(out, rounds) as driver:
            time.sleep(moments.uniform(0.5, 4.0))
            hits += driver.poll() is None
            driver.kill()
        after = recorded(out)
        assert after[: len(before)] == before
        before = after
    assert hits == kills
    with started(out, rounds) as driver:
        assert driver.wait(600) == 0
    records = recorded(out)
    assert records[: len(before)] == before
    counts = Counter((record.preset, record.round) for record in records)
    names = (*PRESETS, "baseline-again")
    expected = {(name, block) for name in names for block in range(rounds)} | {(name, rounds) for name in PRESETS}
    assert counts == dict.fromkeys(expected, 1)
    assert {record.status for record in records} == {"ok"}
    assert len({record.run_id for record in records}) == len(records)
    assert sorted(record.order for record in records) == list(range(len(records)))


@pytest.mark.slow
def test_resume_after_parent_kills_loses_no_run(tmp_path: Path) -> None:
    check_kills_of_the_parent(tmp_path, rounds=12, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_resume_after_twenty_parent_kills_loses_no_run(tmp_path: Path) -> None:
    check_kills_of_the_parent(tmp_path, rounds=60, kills=20, seed=20)


def test_worker_kill_fails_only_its_own_run(tmp_path: Path) -> None:
    with started(tmp_path, 1) as driver:
        deadline = time.monotonic() + 60
        victims: list[psutil.Process] = []
        while not victims and time.monotonic() < deadline:
            victims = psutil.Process(driver.pid).children()
            time.sleep(0.02)
        victims[0].send_signal(signal.SIGKILL)
        assert driver.wait(120) == 0
    records = recorded(tmp_path)
    assert len(records) == 7
    assert [record.status for record in records].count("ok") == 6
    (killed,) = [record for record in records if record.status != "ok"]
    assert (killed.status, "SIGKILL" in str(killed.reason)) == ("crash", True)


def test_resume_replaces_rows_that_a_budget_left_out(tmp_path: Path) -> None:
    suite = suite_of("baseline", "compile", rounds=2, sweeps=SWEEPS)
    workers = faulty(baseline="fine", compile="fine")
    first = run_suite(suite, tmp_path, budget_s=1e-6, worker_command=workers)
    assert [record.status for record in first.records[:2]] == ["ok", "ok"]
    left_out = first.records[2:]
    assert {record.status for record in left_out} == {"not measured"}
    assert sorted((record.preset, record.cells[0].steps) for record in left_out) == [
        ("baseline", 4),
        ("baseline", 8),
        ("compile", 4),
        ("compile", 8),
    ]
    assert all("budget" in str(record.reason) for record in left_out)
    rest = run_suite(suite, tmp_path, resume=True, worker_command=workers)
    assert rest.records[:2] == first.records[:2]
    assert Counter(record.status for record in rest.records) == {"ok": 6}


def test_resume_replaces_an_interrupted_run(tmp_path: Path) -> None:
    suite = suite_of("baseline")
    done = run_suite(suite, tmp_path, worker_command=faulty(baseline="fine"))
    interrupted = done.records[0].model_copy(update={"status": "interrupted", "reason": "Interrupted."})
    ResultStore(tmp_path).write(done.model_copy(update={"records": (interrupted,)}))
    again = run_suite(suite, tmp_path, resume=True, worker_command=faulty(baseline="fine"))
    assert [(record.status, record.round) for record in again.records] == [("ok", 0)]
    assert again.records[0].run_id != interrupted.run_id


def test_resume_on_another_machine_repeats_the_block(tmp_path: Path) -> None:
    suite = suite_of(*PRESETS)
    workers = faulty(**dict.fromkeys(PRESETS, "reports_its_machine"))
    whole = run_suite(suite, tmp_path, worker_command=workers)
    moved = whole.records[0].model_copy(update={"environment": {"gpu": {"name": "card", "uuid_sha256": "other"}}})
    ResultStore(tmp_path).write(whole.model_copy(update={"records": (moved,)}))
    records = run_suite(suite, tmp_path, resume=True, worker_command=workers).records
    assert records[0] == moved
    assert sorted(record.preset for record in records[1:]) == sorted(PRESETS)
    assert {record.round for record in records[1:]} == {1}


def test_resume_with_other_options_is_refused(tmp_path: Path) -> None:
    workers = faulty(baseline="fine", compile="fine")
    run_suite(suite_of("baseline"), tmp_path, command="kontext bench --rounds 1", worker_command=workers)
    for suite, command in (
        (suite_of("baseline"), "kontext bench"),
        (suite_of("compile"), "kontext bench --rounds 1"),
    ):
        with pytest.raises(InvalidInput, match=r"its first run \(kontext bench --rounds 1\)"):
            run_suite(suite, tmp_path, command=command, resume=True, worker_command=workers)
    with pytest.raises(InvalidInput, match="add --resume"):
        run_suite(suite_of("baseline"), tmp_path, command="kontext bench --rounds 1", worker_command=workers)


@pytest.mark.parametrize(
    ("options", "message"), [(["--resume"], "add --out"), (["--budget", "0"], "above 0"), (["--batch", "0"], "batches")]
)
def test_impossible_options_are_explained(options: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", "--checkpoint", "tiny", *options]) == 2
    assert message in capfd.readouterr().err


def test_warm_run_reads_only_the_cache_of_its_cold_run(tmp_path: Path) -> None:
    suite = suite_of("baseline", "compile", rounds=2, compile_caches=("cold", "warm"))
    workers = faulty(baseline="fills_its_caches", compile="fills_its_caches")
    records = run_suite(suite, tmp_path, worker_command=workers).records
    assert len(records) == 8
    for record in records:
        cached = record.environment["cached"]
        assert cached == ([] if record.compile_cache == "cold" else [f"left by {record.preset}"] * 3)
    assert not (tmp_path / FOLDER).exists()


def test_user_caches_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KONTEXT_FAST_CACHE", "mine")
    (record,) = run_suite(suite_of("baseline"), tmp_path, worker_command=faulty(baseline="reports_environment")).records
    assert record.environment["KONTEXT_FAST_CACHE"] == "mine"
    assert record.compile_cache == "user"
    assert os.environ["KONTEXT_FAST_CACHE"] == "mine"
