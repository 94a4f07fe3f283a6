"""Which runs may be compared: those of one checkpoint on one machine that measured the same workload."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kontext_fast.records.machine import machine_name
from kontext_fast.records.schema import Checkpoint, Measurement, Record, ResultFile, Sample, Workload

BASELINE = "baseline"


@dataclass(frozen=True)
class Run:
    """A process that measured every item of a group's workload."""

    record: Record
    measurement: Measurement

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The measured calls, warm-ups excluded."""
        return tuple(sample for sample in self.measurement.samples if not sample.warmup)


@dataclass(frozen=True)
class Group:
    """Runs that may be compared, and the runs that should have been among them but failed."""

    checkpoint: Checkpoint | None
    """None, like the two below, where no run measured anything."""
    machine: str | None
    workload: Workload | None
    presets: tuple[str, ...]
    """Baseline first, then in the order in which they were first scheduled; those that failed included."""
    runs: tuple[Run, ...]
    failures: tuple[Record, ...]

    def runs_of(self, preset: str) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.record.preset == preset)

    def failures_of(self, preset: str) -> tuple[Record, ...]:
        return tuple(record for record in self.failures if record.preset == preset)


_Key = tuple[Checkpoint | None, str | None, Workload]


def groups(result: ResultFile) -> tuple[Group, ...]:
    """The groups in the order in which they were first measured; one without workload where nothing was."""
    records = sorted(result.records, key=lambda record: record.order)
    found: dict[_Key, list[Run]] = {}
    for record in records:
        for measurement in record.measurements:
            if _is_complete(measurement):
                key = (record.checkpoint, machine_name(record.environment), measurement.workload)
                found.setdefault(key, []).append(Run(record, measurement))
    if not found:
        return (Group(None, None, None, _presets(records), (), tuple(records)),) if records else ()
    return tuple(_group(key, runs, records, found) for key, runs in found.items())


def _is_complete(measurement: Measurement) -> bool:
    measured = {sample.item for sample in measurement.samples if not sample.warmup}
    return bool(measured) and measured >= set(measurement.workload.items)


def _group(key: _Key, runs: list[Run], records: list[Record], found: dict[_Key, list[Run]]) -> Group:
    checkpoint, machine, workload = key
    here = [record for record in records if _may_belong(record, checkpoint, machine)]
    siblings = [other for (c, m, _), other in found.items() if (c, m) == (checkpoint, machine)]
    measured_here = {run.record.run_id for run in runs}
    measured_everywhere = set.intersection(*({run.record.run_id for run in other} for other in siblings))
    failures = tuple(
        record
        for record in here
        if record.status != "ok" and (record.run_id not in measured_here or record.run_id in measured_everywhere)
    )
    return Group(checkpoint, machine, workload, _presets(here), tuple(runs), failures)


def _may_belong(record: Record, checkpoint: Checkpoint | None, machine: str | None) -> bool:
    """A run that ended before it knew its checkpoint or machine belongs to every group."""
    name = machine_name(record.environment)
    return record.checkpoint in (None, checkpoint) and name in (None, machine)


def _presets(records: Iterable[Record]) -> tuple[str, ...]:
    names = dict.fromkeys(record.preset for record in records)
    return tuple(sorted(names, key=lambda name: name != BASELINE))
