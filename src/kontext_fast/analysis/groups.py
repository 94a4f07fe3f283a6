"""Which runs may be compared: those of the same checkpoint on the same machine that measured the same workload.

Runs with a cold, a warm and the user's own compile cache are in different groups, since their first calls differ.
Where the plan of a preset changed between runs, only the runs with the plan that was measured last are compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kontext_fast.records.names import is_peer, machine_identity, machine_name
from kontext_fast.records.schema import (
    BASELINE,
    AppliedOptimization,
    Cell,
    Checkpoint,
    CompileCache,
    Measurement,
    Record,
    ResultFile,
    Sample,
    Workload,
)
from kontext_fast.stats.intervals import process_value

Plan = tuple[AppliedOptimization, ...]


@dataclass(frozen=True)
class Run:
    """A process that measured every item of a group's workload."""

    record: Record
    measurement: Measurement

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The measured calls, warm-ups excluded."""
        return tuple(sample for sample in self.measurement.samples if not sample.warmup)

    @property
    def card(self) -> str | None:
        """Tells the card, or the machine without one, from others of its name."""
        return machine_identity(self.record.environment)

    @property
    def seconds(self) -> float:
        """The process value of the time per call."""
        return self.mean(lambda sample: [sample.wall_s]) or 0.0

    def mean(self, values_of: Callable[[Sample], Sequence[float]]) -> float | None:
        """The process value of what `values_of` reads from a measured call; None where no call has any."""
        by_item: dict[str, list[float]] = defaultdict(list)
        for sample in self.samples:
            if values := values_of(sample):
                by_item[sample.item].extend(values)
        return process_value(by_item) if by_item else None


@dataclass(frozen=True)
class Group:
    """Runs that may be compared, and the runs that should have been among them but failed."""

    checkpoint: Checkpoint | None
    """None, like the two below, where no run measured anything of what `failures` were to."""
    machine: str | None
    workload: Workload | None
    """As requested: a peer whose recipe is fewer steps is in the group of those that ran all of them."""
    presets: tuple[str, ...]
    """Baseline first, then ours in the order in which they were first scheduled, then peers; failed ones included."""
    runs: tuple[Run, ...]
    failures: tuple[Record, ...]
    compile_cache: CompileCache = "user"
    plans: Mapping[str, Plan] = field(default_factory=dict)
    """Of each preset that had one the plan that counts."""
    of_other_plans: tuple[Record, ...] = ()
    """Runs with other plans, of any status; they are in neither `runs` nor `failures`."""

    def runs_of(self, preset: str) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.record.preset == preset)

    @property
    def card_of_round(self) -> Mapping[int, str | None]:
        """A block never spans two."""
        return {run.record.round: run.card for run in self.runs}

    def run_ids(self, preset: str) -> tuple[str, ...]:
        """The records that a preset's numbers come from."""
        return tuple(run.record.run_id for run in self.runs_of(preset))

    @property
    def is_of_single_edits(self) -> bool:
        """Whether each call is one edit, with the compile cache that the user has: what is compared over sizes."""
        workload = self.workload
        return workload is not None and (workload.mode, workload.batch, self.compile_cache) == ("edit", 1, "user")

    def failures_of(self, preset: str) -> tuple[Record, ...]:
        return tuple(record for record in self.failures if record.preset == preset)


_Key = tuple[Checkpoint | None, str | None, Workload, CompileCache]


def groups(result: ResultFile) -> tuple[Group, ...]:
    """The groups in the order in which they were first measured.

    Runs that were to measure what nothing measured are in a last group without workload.
    """
    records = sorted(result.records, key=lambda record: record.order)
    by_key: dict[_Key, list[Run]] = {}
    for record in records:
        for measurement in record.measurements:
            if _is_complete(measurement):
                machine = machine_name(record.environment)
                workload = _comparable_workload(measurement, record)
                key = (record.checkpoint, machine, workload, record.compile_cache)
                by_key.setdefault(key, []).append(Run(record, measurement))
    measured = tuple(_group(key, runs, records, by_key) for key, runs in by_key.items())
    rest = tuple(record for record in records if not any(_belongs(record, key, runs) for key, runs in by_key.items()))
    return (*measured, Group(None, None, None, _presets(rest), (), rest)) if rest else measured


def _comparable_workload(measurement: Measurement, record: Record) -> Workload:
    """The workload with the requested steps: a recipe that runs fewer is compared with those that run them all.

    Each such run carries a label that says so, and its own workload still has the steps that were run. With random
    weights nothing is decided by data (`Optimization.on_random_weights`), so blocks of other items and seeds are alike;
    what a server was sent stays apart.
    """
    workload, cell = measurement.workload, measurement.cell
    update: dict[str, Any] = {} if cell is None else {"steps": cell.steps}
    if record.checkpoint is not None and record.checkpoint.random_weights and record.load_test is None:
        update.update(items=(), seeds=())
    return workload.model_copy(update=update)


def _is_complete(measurement: Measurement) -> bool:
    measured = {sample.item for sample in measurement.samples if not sample.warmup}
    return bool(measured) and measured >= set(measurement.workload.items)


def _group(key: _Key, runs: list[Run], records: list[Record], by_key: dict[_Key, list[Run]]) -> Group:
    checkpoint, machine, workload, cache = key
    belonging = [record for record in records if _belongs(record, key, runs)]
    # Runs that measured come last, so that their plan wins over the plan of runs that failed.
    plans = _plans([*belonging, *(run.record for run in runs)])
    here = [record for record in belonging if _has_plan(record, plans)]
    siblings = [other for (c, m, _, k), other in by_key.items() if (c, m, k) == (checkpoint, machine, cache)]
    measured_here = {run.record.run_id for run in runs}
    failures = tuple(
        record
        for record in here
        if record.status != "ok" and (record.run_id not in measured_here or _measured_all(record, siblings))
    )
    return Group(
        checkpoint=checkpoint,
        machine=machine,
        workload=workload,
        presets=_presets(here),
        runs=tuple(run for run in runs if _has_plan(run.record, plans)),
        failures=failures,
        compile_cache=cache,
        plans=plans,
        of_other_plans=tuple(record for record in belonging if not _has_plan(record, plans)),
    )


def _plans(records: Iterable[Record]) -> dict[str, Plan]:
    """Each preset with the plan of the last of `records` that had one."""
    return {record.preset: record.plan for record in records if record.plan}


def _has_plan(record: Record, plans: Mapping[str, Plan]) -> bool:
    return not record.plan or record.plan == plans[record.preset]


def _belongs(record: Record, key: _Key, runs: Iterable[Run]) -> bool:
    """A run that ended before it knew its checkpoint or machine belongs to every group that it was to measure."""
    checkpoint, machine, _, cache = key
    name = machine_name(record.environment)
    alike = record.checkpoint in (None, checkpoint) and name in (None, machine) and record.compile_cache == cache
    return alike and _was_to_measure(record, runs)


def _was_to_measure(record: Record, runs: Iterable[Run]) -> bool:
    """Whether the run was to measure what `runs` did, or something of it where that is not known."""
    return not record.cells or bool(_cells(runs) & {None, *record.cells})


def _measured_all(record: Record, siblings: Iterable[list[Run]]) -> bool:
    """Whether the run measured everything that it was to, before it failed."""
    return all(
        any(run.record.run_id == record.run_id for run in runs) for runs in siblings if _was_to_measure(record, runs)
    )


def _cells(runs: Iterable[Run]) -> set[Cell | None]:
    return {run.measurement.cell for run in runs}


def _presets(records: Iterable[Record]) -> tuple[str, ...]:
    names = dict.fromkeys(record.preset for record in records)
    return tuple(sorted(names, key=lambda name: (name != BASELINE, is_peer(name), name if is_peer(name) else "")))


AnyGroup = TypeVar("AnyGroup", bound=Group)


def by_machine(groups: Iterable[AnyGroup]) -> list[list[AnyGroup]]:
    """Groups with runs, gathered by checkpoint and machine, whose numbers may stand in one chart."""
    gathered: dict[object, list[AnyGroup]] = {}
    for group in groups:
        if group.runs:
            gathered.setdefault((group.checkpoint, group.machine), []).append(group)
    return list(gathered.values())
