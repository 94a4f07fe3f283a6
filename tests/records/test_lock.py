"""Two writers of one result folder: the second one is told who writes, and nothing of the first one is lost."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kontext_fast.cli.output import result_folder
from kontext_fast.errors import InvalidInput
from kontext_fast.records import lock
from kontext_fast.records.lock import HOLDER_NAME, LOCK_NAME, LOCK_NAMES, check_unlocked, locked_folder
from kontext_fast.records.store import ResultStore

ROOT = Path(__file__).parents[2]
WITHOUT_FLOCK = """
import errno, filelock._unix
def missing(fd):
    raise OSError(errno.ENOSYS, "no flock")
filelock._unix.lock_fd_nonblocking = missing
"""
HOLD = """
import sys, time
from pathlib import Path
from kontext_fast.records.lock import locked_folder
with locked_folder(Path(sys.argv[1]), "kontext bench --suite quick"):
    print("held", flush=True)
    time.sleep(60)
"""
TAKE = """
import sys
from pathlib import Path
from kontext_fast.records.lock import locked_folder
with locked_folder(Path(sys.argv[1]), "kontext verify"):
    pass
"""


def start_holder(folder: Path, before: str = "") -> subprocess.Popen[str]:
    holder = subprocess.Popen([sys.executable, "-c", before + HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def kill(holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert holder.stdout is not None
    holder.stdout.close()


def test_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    try:
        for attempt in (
            lambda: check_unlocked(tmp_path),
            lambda: result_folder(tmp_path, "bench"),
            lambda: result_folder(tmp_path, "bench", resume=True),
        ):
            with pytest.raises(InvalidInput, match=rf"`kontext bench --suite quick` \(process {holder.pid} on "):
                attempt()
        with pytest.raises(InvalidInput, match="is in use by"), locked_folder(tmp_path, "kontext verify"):
            pass
    finally:
        kill(holder)


@pytest.mark.parametrize("before", ["", WITHOUT_FLOCK], ids=["flock", "marker"])
def test_lock_of_a_killed_holder_is_taken_over(tmp_path: Path, before: str) -> None:
    holder = start_holder(tmp_path, before)
    take = [sys.executable, "-c", before + TAKE, str(tmp_path)]
    refused = subprocess.run(take, capture_output=True, text=True, check=False)
    assert f"process {holder.pid}" in refused.stderr
    kill(holder)
    assert (tmp_path / HOLDER_NAME).exists()
    taken = subprocess.run(take, capture_output=True, text=True, check=False)
    assert taken.returncode == 0, taken.stderr
    assert not (tmp_path / HOLDER_NAME).exists()


def test_holder_may_lock_again_and_other_threads_may_not(tmp_path: Path) -> None:
    with locked_folder(tmp_path, "outer"):
        with locked_folder(tmp_path / "." / "", "inner"):
            pass
        # The inner one has not given the lock away.
        with ThreadPoolExecutor(1) as pool, pytest.raises(InvalidInput, match=f"`outer` .process {os.getpid()}"):
            pool.submit(check_unlocked, tmp_path).result()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(check_unlocked, tmp_path).result()


def test_holder_says_what_it_does_where_and_since_when(tmp_path: Path) -> None:
    with locked_folder(tmp_path, "kontext  bench\n--suite quick"):
        holder = json.loads((tmp_path / HOLDER_NAME).read_text())
    assert (holder["command"], holder["pid"]) == ("kontext bench --suite quick", os.getpid())
    assert holder["host"] == platform.node()
    assert abs((datetime.now(UTC) - datetime.fromisoformat(holder["since"])).total_seconds()) < 600


def test_holder_that_has_not_yet_named_itself_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = lock._write_holder

    def late(folder: Path, command: str) -> None:
        has_lock.set()
        time.sleep(0.3)
        write(folder, command)

    def hold() -> None:
        with locked_folder(tmp_path, "kontext bench"):
            may_end.wait(60)

    has_lock, may_end = threading.Event(), threading.Event()
    monkeypatch.setattr(lock, "_write_holder", late)
    monkeypatch.setattr(lock, "NAMED_WITHIN_S", 60.0)
    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(hold)
        assert has_lock.wait(60)
        try:
            with pytest.raises(InvalidInput, match=r"is in use by `kontext bench` \(process"):
                check_unlocked(tmp_path)
        finally:
            may_end.set()
        holder.result()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"command": "x"}'])
def test_lock_without_a_readable_holder_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(lock, "NAMED_WITHIN_S", 0.1)
    with locked_folder(tmp_path, "bench"):
        (tmp_path / HOLDER_NAME).write_text(content)
        with ThreadPoolExecutor(1) as pool, pytest.raises(InvalidInput, match="is in use by another process"):
            pool.submit(check_unlocked, tmp_path).result()


def test_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked_folder(tmp_path, "fails"):
        raise RuntimeError
    with ThreadPoolExecutor(1) as pool:
        pool.submit(check_unlocked, tmp_path).result()


def test_folder_with_nothing_but_a_lock_counts_as_empty(tmp_path: Path) -> None:
    with locked_folder(tmp_path, "was here"):
        assert {file.name for file in tmp_path.iterdir()} == LOCK_NAMES
    assert result_folder(tmp_path, "bench") == tmp_path
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InvalidInput, match="is not empty"):
        result_folder(tmp_path, "bench")


def test_new_folder_without_content_is_removed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked_folder(tmp_path / "out", "fails"):
        raise RuntimeError
    assert not (tmp_path / "out").exists()
    with locked_folder(tmp_path / "out", "works"):
        (tmp_path / "out" / "notes.txt").touch()
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"notes.txt", LOCK_NAME}


def test_folder_that_somebody_removed_meanwhile_is_no_error(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "out", "bench"):
        shutil.rmtree(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="cannot be written"), locked_folder(tmp_path / "file" / "out", "bench"):
        pass


BENCH = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.bench.test_bench_runner import faulty, suite_of
from kontext_fast.bench.runner import run_suite
from kontext_fast.errors import InvalidInput
print("ready", flush=True)
sys.stdin.readline()
workers = faulty(baseline="fine", classic="takes_its_time")
try:
    result = run_suite(
        suite_of("baseline", "classic", rounds=3), Path(sys.argv[1]), command=sys.argv[2], worker_command=workers
    )
except InvalidInput as error:
    print(error)
    sys.exit(error.exit_code)
print(" ".join(record.run_id for record in result.records))
"""


def start_together(*commands: list[str]) -> list[tuple[int, str]]:
    """Exit code and last line of every process, all of which begin to write at the same moment."""
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for command in commands
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate()[0] for process in processes]
    return [(process.returncode, output.splitlines()[-1]) for process, output in zip(processes, outputs, strict=True)]


def check_nothing_lost(folder: Path) -> None:
    bench = [sys.executable, "-c", BENCH.format(root=str(ROOT)), str(folder)]
    ended = sorted(start_together([*bench, "first"], [*bench, "second"]))
    (first_code, run_ids), (second_code, reason) = ended
    assert (first_code, second_code) == (0, 2)
    assert "is in use by `" in reason or "already has records" in reason
    stored = ResultStore(folder).load()
    assert [record.run_id for record in stored.records] == run_ids.split()
    assert len(stored.records) == 6


def test_two_benches_into_one_folder_lose_nothing(tmp_path: Path) -> None:
    check_nothing_lost(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(19))
def test_twenty_pairs_of_benches_lose_nothing(tmp_path: Path, turn: int) -> None:
    check_nothing_lost(tmp_path / "out")


COMMANDS = {
    "bench": (
        "bench --checkpoint tiny --presets baseline --no-control --steps 1 --rounds 1 --items 2 --calls 2 --warmup 0"
    ),
    "verify": "verify --checkpoint tiny --items 2 --seeds 2 --steps 2 --preset fuse_qkv",
}
MAIN = """
import sys
from kontext_fast.cli.main import run
print("ready", flush=True)
sys.stdin.readline()
code = run(sys.argv[1:])
print("end of output")
sys.exit(code)
"""


def run_commands(folder: Path, *names: str) -> list[int]:
    commands = [
        [sys.executable, "-c", MAIN, *COMMANDS[name].split(), "--device", "cpu", "--out", str(folder)] for name in names
    ]
    return sorted(code for code, _ in start_together(*commands))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("names", [("bench", "bench"), ("verify", "verify"), ("bench", "verify")], ids="+".join)
@pytest.mark.parametrize("turn", range(7))
def test_two_commands_into_one_folder_lose_nothing(tmp_path: Path, names: tuple[str, str], turn: int) -> None:
    codes = run_commands(tmp_path / "out", *names)
    # Two items are too few for a verdict, which is exit code 1.
    assert codes in ([0, 2], [1, 2])
    stored = json.loads((tmp_path / "out" / "results" / "benchmark_results.json").read_text())
    assert stored["records"]
    assert all(record["status"] in ("ok", "not measured") for record in stored["records"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_verification_is_resumed_by_the_next_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    verify = [sys.executable, "-m", "kontext_fast", *COMMANDS["verify"].split(), "--device", "cpu", "--out", str(out)]
    process = subprocess.Popen(verify, cwd=ROOT)
    journal = out / "work" / "outputs.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    busy = subprocess.run([*verify, "--resume"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert busy.returncode == 2
    assert f"process {process.pid} on" in busy.stderr
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = subprocess.run([*verify, "--resume"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert resumed.returncode in (0, 1), resumed.stderr
    assert "preset" in {record.arm.role for record in ResultStore(out).load().records if record.arm}
