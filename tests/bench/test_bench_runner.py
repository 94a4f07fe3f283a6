"""The parent of a benchmark against real processes that fail."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from kontext_fast.bench.runner import Durations, SuiteProgress, run_suite
from kontext_fast.bench.schedule import Schedule
from kontext_fast.bench.suites import Suite, read_suite
from kontext_fast.errors import Cancelled, InvalidInput
from kontext_fast.records.schema import Record, ResultFile
from kontext_fast.records.store import ResultStore

FAULTY = Path(__file__).parent / "faulty_worker.py"


def faulty(**faults: str) -> tuple[str, ...]:
    return sys.executable, str(FAULTY), ",".join(f"{preset}={fault}" for preset, fault in faults.items())


def suite_of(*presets: str, **changes: Any) -> Suite:
    usual = {"presets": presets, "rounds": 1, "deadline_s": 60, "control": False}
    return read_suite("quick").resolve("tiny").override(**{**usual, **changes})


def run_one(fault: str, out: Path, **changes: Any) -> Record:
    result = run_suite(suite_of("baseline", **changes), out, worker_command=faulty(baseline=fault))
    (record,) = result.records
    assert ResultStore(out).load() == result
    return record


def assert_dead(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    alive = set(pids)
    while alive and time.monotonic() < deadline:
        alive = {pid for pid in alive if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"}
        time.sleep(0.05)
    assert not alive


def test_hanging_worker_times_out_and_leaves_no_process(tmp_path: Path) -> None:
    begin = time.monotonic()
    record = run_one("hangs", tmp_path, deadline_s=4)
    assert record.status == "timeout"
    assert "4 s" in str(record.reason)
    assert time.monotonic() - begin < 30
    # The stack traces at the deadline: the main thread last, the innermost frame first.
    *_, innermost = re.findall(r"most recent call first\):\n(.*)", str(record.stderr_tail))
    assert re.fullmatch(r'  File ".../faulty_worker.py", line \d+ in hangs', innermost)
    assert len(record.environment["pids"]) == 2
    assert_dead(record.environment["pids"])


def test_child_of_a_worker_is_killed_without_delay(tmp_path: Path) -> None:
    begin = time.monotonic()
    record = run_one("leaves_a_child", tmp_path)
    assert record.status == "ok"
    assert time.monotonic() - begin < 30
    assert_dead(record.environment["pids"])


def test_worker_exit_handlers_are_not_waited_for(tmp_path: Path) -> None:
    begin = time.monotonic()
    assert run_one("exits_slowly", tmp_path / "one").status == "ok"
    crash = run_one("crashes_and_exits_slowly", tmp_path / "two")
    assert (crash.status, crash.reason) == ("crash", "The worker ended with exit code 1: RuntimeError: first this")
    assert time.monotonic() - begin < 30


def test_killed_worker_is_a_crash_with_its_earlier_messages(tmp_path: Path) -> None:
    record = run_one("is_killed", tmp_path)
    assert record.status == "crash"
    assert "SIGKILL" in str(record.reason)
    assert record.environment == {"cpu": "known before the end"}


def test_exception_is_a_crash_with_a_redacted_traceback(tmp_path: Path) -> None:
    record = run_one("crashes", tmp_path)
    assert record.status == "crash"
    assert "exit code 1" in str(record.reason)
    assert "RuntimeError" in str(record.reason)
    assert "Traceback" in str(record.stderr_tail)
    stored = (tmp_path / "results" / "benchmark_results.json").read_text()
    assert "model.bin" in stored
    for private in ("alice", "/home", "hf_abcdef", str(FAULTY.parent)):
        assert private not in stored


@pytest.mark.parametrize("fault", ["exhausts_memory", "edits_in_too_little_memory"])
def test_out_of_memory_has_its_own_status(tmp_path: Path, fault: str) -> None:
    record = run_one(fault, tmp_path)
    assert record.status == "oom"
    assert "memory" in str(record.reason)


def test_garbage_between_messages_is_ignored(tmp_path: Path) -> None:
    assert run_one("writes_garbage", tmp_path).status == "ok"


def test_garbage_without_a_message_is_a_crash(tmp_path: Path) -> None:
    record = run_one("only_writes_garbage", tmp_path)
    assert record.status == "crash"
    assert "unreadable" in str(record.reason)


def test_failure_is_a_row_and_the_suite_continues(tmp_path: Path) -> None:
    workers = faulty(baseline="fine", compile="is_killed", classic="refuses")
    result = run_suite(suite_of("baseline", "compile", "classic", rounds=3), tmp_path, worker_command=workers)
    rows = Counter((record.preset, record.status) for record in result.records)
    # A failure is repeated in every round; a refusal does not change and is recorded once.
    assert rows == {("baseline", "ok"): 3, ("compile", "crash"): 3, ("classic", "refused"): 1}
    assert [record.order for record in result.records] == list(range(7))
    refused = next(record for record in result.records if record.status == "refused")
    assert refused.reason == "There is no compiler; install one."


def schedule_of(result: ResultFile) -> list[list[str]]:
    rounds: dict[int, list[str]] = {}
    for record in result.records:
        rounds.setdefault(record.round, []).append(record.preset)
    assert list(rounds) == sorted(rounds)
    return list(rounds.values())


def test_order_of_blocks_is_reproduced_by_the_seed(tmp_path: Path) -> None:
    presets = ("baseline", "compile", "fuse_qkv")
    workers = faulty(**dict.fromkeys(presets, "fine"))

    def run(name: str, seed: int) -> list[list[str]]:
        suite = suite_of(*presets, rounds=2, seed=seed)
        return schedule_of(run_suite(suite, tmp_path / name, worker_command=workers))

    first, again, other = run("a", 1), run("b", 1), run("c", 2)
    assert first == again
    assert first != other
    assert all(sorted(block) == sorted(presets) for block in first)
    assert len({tuple(block) for block in first}) > 1


def test_progress_counts_runs_and_estimates_the_rest(tmp_path: Path) -> None:
    seen: list[SuiteProgress] = []
    run_suite(suite_of("baseline", rounds=3), tmp_path, worker_command=faulty(baseline="fine"), on_progress=seen.append)
    assert [(update.run, update.runs, update.round) for update in seen] == [(0, 3, 0), (1, 3, 1), (2, 3, 2)]
    assert seen[0].left_s is None
    assert seen[1].left_s is not None
    assert seen[2].left_s is not None
    assert seen[1].left_s > seen[2].left_s > 0


def test_worker_sees_only_allowed_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMETHING_PRIVATE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("KONTEXT_FAST_CACHE", "cache")
    environment = run_one("reports_environment", tmp_path).environment
    assert "SOMETHING_PRIVATE" not in environment
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["KONTEXT_FAST_CACHE"] == "cache"
    assert environment["PATH"] == os.environ["PATH"]


def test_unloadable_checkpoint_stops_the_suite(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nowhere"):
        run_suite(suite_of("baseline"), tmp_path / "out", worker_command=faulty(baseline="cannot_load"))
    assert not (tmp_path / "out").exists()


def test_unknown_preset_is_refused_before_any_run(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="did you mean baseline"):
        run_suite(suite_of("baselin"), tmp_path / "out", worker_command=("false",))


def test_existing_records_are_never_overwritten(tmp_path: Path) -> None:
    run_one("fine", tmp_path)
    with pytest.raises(InvalidInput, match="already has records"):
        run_one("fine", tmp_path)


DRIVER = """
import sys
from pathlib import Path
from kontext_fast.bench.runner import run_suite
from kontext_fast.errors import KontextError
from tests.bench.test_bench_runner import faulty, suite_of
try:
    suite = suite_of("baseline", "compile", seed=int(sys.argv[2]))
    run_suite(suite, Path(sys.argv[1]), worker_command=faulty(baseline="fine", compile="waits"),
              on_progress=lambda update: print(update.preset, flush=True))
except KontextError as error:
    sys.exit(error.exit_code)
"""


def baseline_first() -> int:
    """A seed whose schedule runs baseline before compile."""

    def first(seed: int) -> str:
        run = Schedule(suite_of("baseline", "compile", seed=seed)).next_run([], None)
        assert run is not None
        return run.configuration.name

    return next(seed for seed in range(99) if first(seed) == "baseline")


def started_driver(out: Path) -> subprocess.Popen[str]:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(out), str(baseline_first())],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert driver.stdout is not None
    assert [driver.stdout.readline(), driver.stdout.readline()] == ["baseline\n", "compile\n"]
    return driver


def test_ctrl_c_kills_the_worker_and_keeps_finished_runs(tmp_path: Path) -> None:
    with started_driver(tmp_path) as driver:
        time.sleep(3)
        driver.send_signal(signal.SIGINT)
        assert driver.wait(30) == Cancelled.exit_code
    records = ResultStore(tmp_path).load().records
    assert [(record.preset, record.status) for record in records] == [("baseline", "ok"), ("compile", "interrupted")]
    assert_dead(records[1].environment["pids"])


def test_worker_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    with started_driver(tmp_path) as driver:
        deadline = time.monotonic() + 20
        workers: list[psutil.Process] = []
        while not workers and time.monotonic() < deadline:
            workers = psutil.Process(driver.pid).children()
            time.sleep(0.05)
        time.sleep(2)
        driver.kill()
    assert workers
    assert_dead([worker.pid for worker in workers])


def test_parent_imports_no_torch(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from tests.bench.test_bench_runner import faulty, suite_of
from kontext_fast.bench.runner import run_suite
import kontext_fast.cli.bench
result = run_suite(suite_of("baseline"), Path(sys.argv[1]), worker_command=faulty(baseline="fine"))
assert result.records[0].status == "ok"
print(sorted({"torch", "diffusers", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert done.stdout == "[]\n"


def test_durations_are_estimated_by_the_work_of_a_run() -> None:
    suite = suite_of("baseline", "compile", rounds=2, sweeps=({"name": "steps", "priority": 1, "steps": (14, 42)},))
    runs = Schedule(suite).remaining([], None)
    centre, other = runs[0], next(run for run in runs if run.configuration != runs[0].configuration)
    sweep = next(run for run in runs if run.tier != centre.tier and run.configuration == centre.configuration)
    durations = Durations()
    assert durations.of(centre) is None
    assert durations.of_all([centre]) is None
    durations.add(centre, 10.0)
    assert durations.of(centre) == 10.0
    assert durations.of(other) == 10.0
    assert durations.of(sweep) == pytest.approx(10.0 * (14 + 42) / 28)
    assert durations.of_all([centre, other]) == 20.0
