"""The parent of a benchmark: schedules the runs, turns every outcome into a record, and imports no torch.

Runs are blocked and interleaved: each round runs every preset once, in random order, each in a fresh process, so that
drift of the machine hits all presets alike and the process is the unit of replication. A failure is a record too.
"""

from __future__ import annotations

import random
import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kontext_fast.bench.privacy import without_private_facts
from kontext_fast.bench.process import WorkerEnd, run_worker
from kontext_fast.bench.protocol import Applied, Impossible, Job, Loaded, Measured, Planned, Progress, Started
from kontext_fast.bench.suites import Suite
from kontext_fast.errors import Cancelled, InvalidInput, Refused
from kontext_fast.records.schema import Item, Record, ResultFile, Status
from kontext_fast.records.store import ResultStore
from kontext_fast.version import __version__

WORKER = (sys.executable, "-P", "-m", "kontext_fast.bench.worker")


@dataclass(frozen=True)
class Where:
    """How far a suite is."""

    run: int
    """0-based position of the running run."""
    runs: int
    """How many there will be; refused presets are not run again, so it can shrink."""
    round: int
    rounds: int
    preset: str
    progress: Progress | None
    """What the worker said last; None until it says something."""
    left_s: float | None
    """Estimated from the runs that ended; None before the first one has."""


@dataclass(frozen=True)
class _Run:
    preset: str
    round: int


def run_suite(
    suite: Suite,
    out: Path,
    *,
    checkpoint: str = "tiny",
    device: str | None = None,
    command: str = "run_suite",
    on_progress: Callable[[Where], None] | None = None,
    worker_command: Sequence[str] = WORKER,
) -> ResultFile:
    """Run every preset of `suite` on `checkpoint` and store one record per run in the folder `out`.

    Records are on disk after each run. Presets that fail stay in the schedule, since how often they fail is a result;
    presets that this machine refuses are recorded once.
    Raises InvalidInput for an unknown preset, an unusable checkpoint or a folder that already has records; Refused if
    the checkpoint cannot be run here at all; Cancelled on Ctrl-C, after what is finished was stored.
    """
    _check_presets(suite.presets)
    store = ResultStore(out)
    if store.records_file.exists():
        raise InvalidInput(f"{out} already has records; choose another folder.")
    book = _Book(store, suite, command)
    tracker = _Tracker(suite, on_progress or (lambda _: None))
    waiting = _schedule(suite)
    while waiting:
        run, *waiting = waiting
        job = Job(
            checkpoint=checkpoint,
            preset=run.preset,
            suite=suite,
            device=device,
            keep_images=run.round == 0,
            folder=str(out.absolute()),
        )
        created_at = datetime.now(UTC).isoformat(timespec="seconds")
        tracker.begin(run, waiting)
        end = run_worker(worker_command, job, deadline_s=suite.deadline_s, on_progress=tracker.report)
        tracker.end()
        _raise_if_impossible(end)
        status = book.add(run, created_at, end)
        if end.cause == "interrupt":
            raise Cancelled(f"The benchmark was interrupted; the runs that finished are kept in {out}.")
        if status == "refused":
            waiting = [later for later in waiting if later.preset != run.preset]
    return book.result()


def _check_presets(names: Sequence[str]) -> None:
    from kontext_fast.optimizations.presets import PRESETS
    from kontext_fast.optimizations.registry import unknown

    for name in names:
        if name not in PRESETS:
            raise InvalidInput(unknown("preset", name, PRESETS))


def _schedule(suite: Suite) -> list[_Run]:
    """Blocks in order, presets inside each block shuffled by the suite's seed."""
    generator = random.Random(suite.seed)
    return [
        _Run(preset, block)
        for block in range(suite.rounds)
        for preset in generator.sample(suite.presets, len(suite.presets))
    ]


def _raise_if_impossible(end: WorkerEnd) -> None:
    for message in end.messages:
        if isinstance(message, Impossible):
            raise (InvalidInput if message.fault == "input" else Refused)(message.reason)


class _Book:
    """The records so far, on disk after every run."""

    def __init__(self, store: ResultStore, suite: Suite, command: str) -> None:
        self._store = store
        self._suite = suite
        self._command = without_private_facts(command)
        self._items: dict[str, Item] = {}
        self.records: list[Record] = []

    def add(self, run: _Run, created_at: str, end: WorkerEnd) -> Status:
        status, reason = _verdict(end, self._suite.deadline_s)
        facts, items = _facts(end)
        self._items = {**{item.id: item for item in items}, **self._items}
        self.records.append(
            Record(
                run_id=secrets.token_hex(8),
                created_at=created_at,
                preset=run.preset,
                round=run.round,
                order=len(self.records),
                status=status,
                reason=None if reason is None else without_private_facts(reason),
                stderr_tail=None if status in ("ok", "refused") else end.stderr_tail or None,
                **facts,
            )
        )
        self._store.write(self.result())
        return status

    def result(self) -> ResultFile:
        return ResultFile(
            kontext_fast_version=__version__,
            command=self._command,
            suite=self._suite.name,
            suite_sha256=self._suite.sha256,
            seed=self._suite.seed,
            items=tuple(self._items.values()),
            records=tuple(self.records),
        )


def _facts(end: WorkerEnd) -> tuple[dict[str, Any], list[Item]]:
    """Fields of a record that the worker told, as far as it came, and the items it used."""
    facts: dict[str, Any] = {"environment": {}, "plan": (), "checkpoint": None, "measurements": ()}
    items: list[Item] = []
    for message in end.messages:
        match message:
            case Started(environment=environment):
                facts["environment"] = environment
            case Planned(plan=plan, labels=labels):
                facts.update(plan=plan, labels=labels)
            case Loaded(checkpoint=checkpoint, load_s=load_s):
                facts.update(checkpoint=checkpoint, load_s=load_s)
            case Applied(apply_s=apply_s):
                facts["apply_s"] = apply_s
            case Measured(measurement=measurement, items=measured):
                facts["measurements"] = (*facts["measurements"], measurement)
                items.extend(measured)
    return facts, items


def _verdict(end: WorkerEnd, deadline_s: float) -> tuple[Status, str | None]:
    """Status and, unless it is ok, one sentence."""
    if end.ended is not None and end.ended.status != "interrupted":
        return end.ended.status, end.ended.reason
    if end.cause == "deadline":
        return "timeout", f"The run did not end within {deadline_s:g} s; raise deadline_s if that is too short for it."
    if end.cause == "interrupt" or end.ended is not None:
        return "interrupted", "The run was interrupted; start the benchmark again for a full set."
    if end.exit_code < 0:
        name = _signal_name(-end.exit_code)
        hint = ", as a system short of memory does" if -end.exit_code == signal.SIGKILL else ""
        return "crash", f"The worker was killed by {name}{hint}."
    last_words = end.stderr_tail.splitlines()[-1:] or ["it printed nothing"]
    noise = f" after {end.unreadable_lines} unreadable answers" if end.unreadable_lines else ""
    return "crash", f"The worker ended with exit code {end.exit_code}{noise}: {last_words[0]}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _Tracker:
    """Tells `on_progress` how far the suite is, and guesses how long the rest takes from what each preset took."""

    def __init__(self, suite: Suite, on_progress: Callable[[Where], None]) -> None:
        self._rounds = suite.rounds
        self._on_progress = on_progress
        self._took_s: dict[str, float] = {}
        self._done = 0

    def begin(self, run: _Run, waiting: Sequence[_Run]) -> None:
        self._run = run
        self._waiting = [later.preset for later in waiting]
        self._started = time.monotonic()
        self.report(None)

    def report(self, progress: Progress | None) -> None:
        self._on_progress(
            Where(
                run=self._done,
                runs=self._done + 1 + len(self._waiting),
                round=self._run.round,
                rounds=self._rounds,
                preset=self._run.preset,
                progress=progress,
                left_s=self._left_s(),
            )
        )

    def end(self) -> None:
        self._took_s[self._run.preset] = time.monotonic() - self._started
        self._done += 1

    def _left_s(self) -> float | None:
        if not self._took_s:
            return None
        usual_s = sum(self._took_s.values()) / len(self._took_s)
        running_s = self._took_s.get(self._run.preset, usual_s) - (time.monotonic() - self._started)
        return max(0.0, running_s) + sum(self._took_s.get(preset, usual_s) for preset in self._waiting)
