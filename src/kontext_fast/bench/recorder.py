"""The records of a benchmark while it runs: every outcome of a worker becomes one, on disk before the next run."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from kontext_fast.bench.process import WorkerEnd
from kontext_fast.bench.protocol import Applied, Loaded, Measured, Planned, Started
from kontext_fast.bench.redact import redact
from kontext_fast.bench.schedule import UNFINISHED, Run, Schedule, machine_of
from kontext_fast.bench.suites import Suite
from kontext_fast.errors import InvalidInput
from kontext_fast.records.names import machine_identity
from kontext_fast.records.schema import Cell, Record, ResultFile, Status, StoredItem
from kontext_fast.records.store import ResultStore
from kontext_fast.version import __version__


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunRecorder:
    """The result file of one suite."""

    def __init__(self, store: ResultStore, suite: Suite, command: str) -> None:
        self._store = store
        self._suite = suite
        self._items: dict[str, StoredItem] = {}
        self._command = redact(command)
        self.records: list[Record] = []

    @classmethod
    def open(cls, store: ResultStore, suite: Suite, command: str, *, resume: bool) -> RunRecorder:
        """A new book, or one that goes on where its records end; a benchmark that wrote none yet starts anew.

        Raises InvalidInput for a folder with records that are not to be, or cannot be, gone on with.
        """
        book = cls(store, suite, command)
        if not store.records_file.exists():
            return book
        if not resume:
            raise InvalidInput(f"{store.folder} already has records; choose another folder, or add --resume.")
        before = store.load()
        if before.suite_sha256 != suite.sha256 or before.command != book._command:
            raise InvalidInput(
                f"{store.folder} was measured with other options or another version of the suite; go on with the "
                f"options of its first run ({before.command}), or choose another folder."
            )
        book._items = {item.id: item for item in before.items}
        book.records = list(before.records)
        return book

    def add(self, run: Run, schedule: Schedule, created_at: str, end: WorkerEnd) -> Record:
        """Record how `run` ended; what stood for it as not done yet gives way."""
        status, reason = _verdict(end, self._suite.deadline_s)
        facts, items = _facts(end)
        self._items = {**{item.id: item for item in items}, **self._items}
        record = Record(
            run_id=secrets.token_hex(8),
            created_at=created_at,
            preset=run.configuration.name,
            round=self._block_of(run, schedule, facts["environment"]),
            order=self._next_order(),
            status=status,
            reason=None if reason is None else redact(reason),
            stderr_tail=None if status in ("ok", "refused") else end.stderr_tail or None,
            cells=run.tier.cells,
            compile_cache=run.configuration.compile_cache,
            **facts,
        )
        self.records = [known for known in self.records if not _gives_way(known, record)]
        self.records.append(record)
        self._store.write(self.result())
        return record

    def add_not_measured(self, cells: Iterable[tuple[Run, Cell]], reason: str) -> None:
        """A row for every cell that no run was made for, in place of the rows of an earlier invocation."""
        self.records = [record for record in self.records if record.status != "not measured"]
        for run, cell in cells:
            self.records.append(
                Record(
                    run_id=secrets.token_hex(8),
                    created_at=now(),
                    preset=run.configuration.name,
                    plan=(),
                    checkpoint=None,
                    environment={},
                    round=run.round,
                    order=self._next_order(),
                    status="not measured",
                    reason=reason,
                    cells=(cell,),
                    compile_cache=run.configuration.compile_cache,
                )
            )
        self._store.write(self.result())

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

    def _next_order(self) -> int:
        return max((record.order + 1 for record in self.records), default=0)

    def _block_of(self, run: Run, schedule: Schedule, environment: dict[str, Any]) -> int:
        """The run's block, or a new one where that was begun on another machine."""
        block = [record for record in self.records if (record.round, record.cells) == (run.round, run.tier.cells)]
        begun_on, here = machine_of(block), machine_identity(environment)
        if begun_on is None or here in (None, begun_on):
            return run.round
        return schedule.fresh_round(self.records)


def _gives_way(known: Record, record: Record) -> bool:
    return (
        known.status in UNFINISHED
        and (known.preset, known.compile_cache) == (record.preset, record.compile_cache)
        and set(known.cells) <= set(record.cells)
    )


def _facts(end: WorkerEnd) -> tuple[dict[str, Any], list[StoredItem]]:
    """Fields of a record that the worker told, as far as it came, and the items it used."""
    facts: dict[str, Any] = {"environment": {}, "plan": (), "checkpoint": None, "measurements": ()}
    items: list[StoredItem] = []
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
        return "interrupted", "The run was interrupted; go on with --resume."
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
