"""The parent of a benchmark: starts one worker after the other and turns every outcome into a record. Imports no torch.

Runs are blocked and interleaved: each block runs every preset once, in random order, each in a fresh process, so that
drift of the machine affects all presets alike and the process is the unit of replication. A failure is a record too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kontext_fast.bench.environment import CompileCaches
from kontext_fast.bench.process import WorkerResult, run_worker
from kontext_fast.bench.protocol import Job, Progress, SuiteAborted
from kontext_fast.bench.recorder import RunRecorder, now
from kontext_fast.bench.schedule import Run, Schedule, not_measured_cells
from kontext_fast.bench.suites import NATIVE, Suite, Tier
from kontext_fast.errors import Cancelled, InvalidInput, Refused
from kontext_fast.pipeline.load import kind_of
from kontext_fast.pipeline.sizes import parse_size
from kontext_fast.records.lock import locked_folder
from kontext_fast.records.names import machine_identity
from kontext_fast.records.schema import Record, ResultFile
from kontext_fast.records.store import ResultStore

WORKER = (sys.executable, "-P", "-m", "kontext_fast.bench.worker")


@dataclass(frozen=True)
class SuiteProgress:
    """How far a suite is."""

    run: int
    """0-based position of the current run; runs of earlier invocations are not counted."""
    runs: int
    """Expected number of runs; it shrinks when a preset is refused, since that is not run again."""
    round: int
    """0-based number of the block."""
    rounds: int
    preset: str
    progress: Progress | None
    """The worker's last progress message; None before the first one."""
    left_s: float | None
    """Estimated from the runs that ended; None before the first one has."""


def run_suite(
    suite: Suite,
    out: Path,
    *,
    checkpoint: str = "tiny",
    dataset: Path | None = None,
    loras: Sequence[tuple[str, float]] = (),
    device: str | None = None,
    command: str = "run_suite",
    resume: bool = False,
    budget_s: float | None = None,
    on_progress: Callable[[SuiteProgress], None] | None = None,
    worker_command: Sequence[str] | None = WORKER,
) -> ResultFile:
    """Run every preset of `suite` on `checkpoint` and store one record per run in the folder `out`.

    `dataset` is the path of items of the user's, in place of those of the shapes world; `loras` are paths and strengths
    of LoRAs that are merged before a preset is applied.
    Records are on disk after each run. A preset that fails is run again in later blocks, since its failure rate is a
    result; a preset that this machine refuses is recorded once. `resume` continues the records in `out`, if there are
    any. With `budget_s`, a block that is not expected to end in time is not started, and the cells that were not
    reached are recorded as not measured. The first block is always run. `worker_command` is None for workers that are
    forked from a process that has imported the libraries, which spares them some seconds each. Raises InvalidInput for
    an unknown preset, an unusable checkpoint, a folder that another process writes into, or one whose records cannot be
    continued; Refused if the checkpoint cannot run on this machine at all; Cancelled on Ctrl-C, after finished runs
    were stored.
    """
    schedule = Schedule(suite)
    with locked_folder(out, command):
        recorder = RunRecorder.open(ResultStore(out), suite, command, resume=resume)
        caches = CompileCaches(out)
        tracker = _ProgressTracker(schedule.blocks, on_progress or (lambda _: None))
        ends_at = None if budget_s is None else time.monotonic() + budget_s
        machine: str | None = None
        while (run := schedule.next_run(recorder.records, machine)) is not None:
            remaining = schedule.remaining(recorder.records, machine)
            begins = _begins_block(run, recorder.records)
            if ends_at is not None and begins and not tracker.fits(run, remaining, ends_at):
                reason = f"The budget of {(budget_s or 0) / 60:g} minutes did not reach it; continue with --resume."
                recorder.add_not_measured(not_measured_cells(schedule, suite, recorder.records), reason)
                break
            job = Job(
                checkpoint=checkpoint,
                preset=run.configuration.preset,
                suite=suite,
                dataset=None if dataset is None else str(dataset.absolute()),
                loras=tuple((str(Path(path).expanduser().absolute()), strength) for path, strength in loras),
                cells=run.tier.cells,
                device=device,
                # Random weights produce noise, which takes much space and is of no use.
                keep_images=run.round == 0 and not kind_of(checkpoint).random_weights,
                folder=str(out.absolute()),
            )
            created_at = now()
            tracker.begin(run, remaining)
            result = run_worker(
                worker_command,
                job,
                variables=caches.variables(run.configuration),
                deadline_s=suite.deadline_s,
                on_progress=tracker.report,
            )
            tracker.end()
            _raise_if_aborted(result)
            record = recorder.add(run, schedule, created_at, result)
            machine = machine_identity(record.environment) or machine
            if result.cause == "interrupt":
                raise Cancelled(
                    f"The benchmark was interrupted; the finished runs are in {out}; continue with --resume."
                )
        caches.remove()
        return recorder.result()


def _begins_block(run: Run, records: Sequence[Record]) -> bool:
    return all((record.round, record.cells) != (run.round, run.tier.cells) for record in records)


def _raise_if_aborted(result: WorkerResult) -> None:
    for message in result.messages:
        if isinstance(message, SuiteAborted):
            raise (InvalidInput if message.fault == "input" else Refused)(message.reason)


class _ProgressTracker:
    """Reports the progress of a suite to `on_progress`, with an estimate of the time left."""

    def __init__(self, blocks: int, on_progress: Callable[[SuiteProgress], None]) -> None:
        self._blocks = blocks
        self._on_progress = on_progress
        self._durations = Durations()
        self._done = 0

    def fits(self, run: Run, remaining: Sequence[Run], ends_at: float) -> bool:
        """Whether the block that `run` begins is expected to end in time; True where there is no estimate yet."""
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
            SuiteProgress(
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


class Durations:
    """How long runs take, estimated from the whole processes that ended, loading included."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str, Tier], float] = {}

    def add(self, run: Run, seconds: float) -> None:
        self._seconds[_key(run)] = seconds

    def of(self, run: Run) -> float | None:
        """Seconds of the run itself, or of runs like it scaled by their work; None before any run has ended."""
        if _key(run) in self._seconds:
            return self._seconds[_key(run)]
        name, cache, _ = _key(run)
        alike = (
            {key: seconds for key, seconds in self._seconds.items() if key[:2] == (name, cache)}
            or {key: seconds for key, seconds in self._seconds.items() if key[2] == run.tier}
            or self._seconds
        )
        if not alike:
            return None
        return sum(seconds * _work(run.tier) / _work(tier) for (_, _, tier), seconds in alike.items()) / len(alike)

    def of_all(self, runs: Iterable[Run]) -> float | None:
        """Seconds for all of `runs`; None where there is no estimate yet."""
        times = [self.of(run) for run in runs]
        return None if None in times else sum(time for time in times if time is not None)


def _key(run: Run) -> tuple[str, str, Tier]:
    return run.configuration.name, run.configuration.compile_cache, run.tier


def _work(tier: Tier) -> float:
    """Pixels times steps, summed over the cells: roughly proportional to the time of the edits."""
    return sum(cell.steps * cell.batch * _pixels(cell.size) for cell in tier.cells)


def _pixels(size: str) -> int:
    # The parent has not loaded the checkpoint, so its native size is a guess.
    width, height = (1024, 1024) if size == NATIVE else parse_size(size)
    return width * height
