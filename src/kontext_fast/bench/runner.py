"""The parent of a benchmark: makes one run after the other, turns every outcome into a record, and imports no torch.

Runs are blocked and interleaved: each block runs every preset once, in random order, each in a fresh process, so that
drift of the machine hits all presets alike and the process is the unit of replication. A failure is a record too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kontext_fast.bench.environment import CompileCaches
from kontext_fast.bench.eta import Durations
from kontext_fast.bench.process import WorkerEnd, run_worker
from kontext_fast.bench.protocol import Impossible, Job, Progress
from kontext_fast.bench.recorder import RunRecorder, now
from kontext_fast.bench.schedule import Run, Schedule, not_measured_cells
from kontext_fast.bench.suites import Suite, kind_of
from kontext_fast.errors import Cancelled, InvalidInput, Refused
from kontext_fast.records.names import machine_identity
from kontext_fast.records.schema import Record, ResultFile
from kontext_fast.records.store import ResultStore

WORKER = (sys.executable, "-P", "-m", "kontext_fast.bench.worker")


@dataclass(frozen=True)
class Where:
    """How far a suite is."""

    run: int
    """0-based position of the running run, those of earlier invocations not counted."""
    runs: int
    """How many there will be; refused presets are not run again, so it can shrink."""
    round: int
    """0-based number of the block."""
    rounds: int
    preset: str
    progress: Progress | None
    """What the worker said last; None until it says something."""
    left_s: float | None
    """Estimated from the runs that ended; None before the first one has."""


def run_suite(
    suite: Suite,
    out: Path,
    *,
    checkpoint: str = "tiny",
    device: str | None = None,
    command: str = "run_suite",
    resume: bool = False,
    budget_s: float | None = None,
    on_progress: Callable[[Where], None] | None = None,
    worker_command: Sequence[str] = WORKER,
) -> ResultFile:
    """Run every preset of `suite` on `checkpoint` and store one record per run in the folder `out`.

    Records are on disk after each run. Presets that fail stay in the schedule, since how often they fail is a result;
    presets that this machine refuses are recorded once. `resume` goes on where the records in `out` end, if there are
    any. `budget_s` starts no block that would not end in time, as far as that can be told; the cells that were not
    reached are recorded as not measured. The first block is always run.
    Raises InvalidInput for an unknown preset, an unusable checkpoint or a folder whose records cannot be gone on with;
    Refused if the checkpoint cannot be run here at all; Cancelled on Ctrl-C, after what is finished was stored.
    """
    schedule = Schedule(suite)
    book = RunRecorder.open(ResultStore(out), suite, command, resume=resume)
    caches = CompileCaches(out)
    tracker = _Tracker(schedule.blocks, on_progress or (lambda _: None))
    ends_at = None if budget_s is None else time.monotonic() + budget_s
    machine: str | None = None
    while (run := schedule.next_run(book.records, machine)) is not None:
        remaining = schedule.remaining(book.records, machine)
        begins = _begins_block(run, book.records)
        if ends_at is not None and begins and not tracker.fits(run, remaining, ends_at):
            reason = f"The budget of {(budget_s or 0) / 60:g} minutes did not reach it; go on with --resume."
            book.add_not_measured(not_measured_cells(schedule, suite, book.records), reason)
            break
        job = Job(
            checkpoint=checkpoint,
            preset=run.configuration.preset,
            suite=suite,
            cells=run.tier.cells,
            device=device,
            # Random weights make noise, which is large and which nobody looks at.
            keep_images=run.round == 0 and kind_of(checkpoint) != "random",
            folder=str(out.absolute()),
        )
        created_at = now()
        tracker.begin(run, remaining)
        end = run_worker(
            worker_command,
            job,
            variables=caches.variables(run.configuration),
            deadline_s=suite.deadline_s,
            on_progress=tracker.report,
        )
        tracker.end()
        _raise_if_impossible(end)
        record = book.add(run, schedule, created_at, end)
        machine = machine_identity(record.environment) or machine
        if end.cause == "interrupt":
            raise Cancelled(f"The benchmark was interrupted; the finished runs are in {out}; go on with --resume.")
    caches.remove()
    return book.result()


def _begins_block(run: Run, records: Sequence[Record]) -> bool:
    return all((record.round, record.cells) != (run.round, run.tier.cells) for record in records)


def _raise_if_impossible(end: WorkerEnd) -> None:
    for message in end.messages:
        if isinstance(message, Impossible):
            raise (InvalidInput if message.fault == "input" else Refused)(message.reason)


class _Tracker:
    """Tells `on_progress` how far the suite is, and guesses how long the rest takes from what ended."""

    def __init__(self, blocks: int, on_progress: Callable[[Where], None]) -> None:
        self._blocks = blocks
        self._on_progress = on_progress
        self._durations = Durations()
        self._done = 0

    def fits(self, run: Run, remaining: Sequence[Run], ends_at: float) -> bool:
        """Whether the block that `run` begins ends in time; where nothing is known yet, it is tried."""
        block = {left.configuration: left for left in remaining if left.tier == run.tier}
        needed_s = self._durations.of_all(block.values())
        return needed_s is None or time.monotonic() + needed_s <= ends_at

    def begin(self, run: Run, remaining: Sequence[Run]) -> None:
        self._run = run
        self._waiting = list(remaining)
        self._waiting.remove(next(left for left in self._waiting if left.configuration == run.configuration))
        self._started = time.monotonic()
        self.report(None)

    def report(self, progress: Progress | None) -> None:
        self._on_progress(
            Where(
                run=self._done,
                runs=self._done + 1 + len(self._waiting),
                round=self._run.round,
                rounds=self._blocks,
                preset=self._run.configuration.name,
                progress=progress,
                left_s=self._left_s(),
            )
        )

    def end(self) -> None:
        self._durations.add(self._run, time.monotonic() - self._started)
        self._done += 1

    def _left_s(self) -> float | None:
        running_s, waiting_s = self._durations.of(self._run), self._durations.of_all(self._waiting)
        if running_s is None or waiting_s is None:
            return None
        return max(0.0, running_s - (time.monotonic() - self._started)) + waiting_s
