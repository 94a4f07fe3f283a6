"""The headline table: one row per preset, computed from the raw samples; a preset that failed is a row too."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kontext_fast.analysis.groups import Group, Run
from kontext_fast.analysis.judge_scores import accepted_by_item
from kontext_fast.records.schema import BASELINE, EMULATED, Memory, Sample, Status
from kontext_fast.stats.intervals import (
    Estimate,
    Summary,
    acceptance,
    mean_estimate,
    paired_difference,
    ratio_interval,
    summarize,
)

REFERENCE = "reference"
"""Stands in place of baseline's factor."""
EMULATED_TIME = "emulated kernel: not a speed"
"""Stands in place of what is computed from the time of an emulated kernel."""


@dataclass(frozen=True)
class Failure:
    run_id: str
    round: int
    status: Status
    reason: str


@dataclass(frozen=True)
class ComputedSteps:
    """Steps of a call that ran the transformer, over all measured calls."""

    low: int
    mean: float
    high: int
    total: int


@dataclass(frozen=True)
class Row:
    """Times in seconds per call (PIL in, PIL out), memory in bytes; None where not measured."""

    preset: str
    status: Status
    """`ok` where at least one process measured the workload; `failures` may still hold others."""
    failures: tuple[Failure, ...]
    labels: tuple[str, ...]
    time: Summary | None
    by_round: Mapping[int, float]
    """Seconds per call of each round's process."""
    card_of_round: Mapping[int, str | None]
    factor: Estimate | None
    """Baseline's time over this one's."""
    factor_note: str | None
    """Why there is no factor."""
    computed_steps: ComputedSteps | None
    accepted: Estimate | None
    accepted_change: Estimate | None
    """Acceptance minus that of baseline on the same items, in -1 to 1."""
    memory: Memory
    """The largest of each peak over all measured calls."""
    energy: Estimate | None
    """Joules per call of the whole card, by its own counter."""
    load: Estimate | None
    apply: Estimate | None
    first_call: Estimate | None

    @property
    def failures_alike(self) -> Mapping[tuple[Status, str], int]:
        """The number of failures of each status and reason, in their order."""
        return Counter((failure.status, failure.reason) for failure in self.failures)

    @property
    def reason(self) -> str | None:
        """The distinct reasons of its failures."""
        if self.status == "not measured" and not self.failures:
            return "No run measured this workload in full."
        return " ".join(dict.fromkeys(failure.reason for failure in self.failures)) or None

    @property
    def status_and_reason(self) -> str:
        """`refused: There is no compiler.`"""
        return f"{self.status}: {self.reason}" if self.reason else self.status

    @property
    def no_speed(self) -> str | None:
        """Why it has no time that tells how fast it is; None where it has one."""
        if self.time is None:
            return self.status_and_reason
        return EMULATED_TIME if EMULATED in self.labels else None


def headline(group: Group) -> tuple[Row, ...]:
    """Rows in the group's order of presets."""
    baseline = group.runs_of(BASELINE)
    return tuple(_row(group, preset, baseline) for preset in group.presets)


_OF_28 = re.compile(r"\d+ of 28 steps(?: computed)? at 28(?: \([\d, ]*\))?")
"""What a schedule does at the usual 28 steps, which a preset states before it knows how many it will run."""


def _label_at(label: str, steps: ComputedSteps | None) -> str:
    """`label` with the steps that were computed in place of those that 28 steps would have had."""
    if steps is None:
        return label
    return _OF_28.sub(f"{round(steps.mean, 1):g} of {steps.total} steps computed", label)


def _row(group: Group, preset: str, baseline: Sequence[Run]) -> Row:
    runs = group.runs_of(preset)
    failures = tuple(
        Failure(record.run_id, record.round, record.status, record.reason or "No reason was recorded.")
        for record in group.failures_of(preset)
    )
    steps = _computed_steps(runs)
    labels = tuple(
        dict.fromkeys(
            _label_at(label, steps)
            for record in [*(r.record for r in runs), *group.failures_of(preset)]
            for label in record.labels
        )
    )
    by_round = _by_round(runs)
    factor, factor_note = _factor(preset, labels, baseline, by_round, group.card_of_round)
    judged = accepted_by_item(runs)
    return Row(
        preset=preset,
        status=_status(runs, failures),
        failures=failures,
        labels=labels,
        time=summarize([run.seconds for run in runs], [run.card for run in runs]) if runs else None,
        by_round=by_round,
        card_of_round=group.card_of_round,
        factor=factor,
        factor_note=factor_note,
        computed_steps=steps,
        accepted=acceptance(judged),
        accepted_change=None if preset == BASELINE else paired_difference(accepted_by_item(baseline), judged),
        memory=_peaks(runs),
        energy=_estimate(runs, lambda run: run.mean(_energy)),
        load=_estimate(runs, lambda run: run.record.load_s),
        apply=_estimate(runs, lambda run: run.record.apply_s),
        first_call=_estimate(runs, lambda run: run.measurement.first_call_s),
    )


def _status(runs: Sequence[Run], failures: Sequence[Failure]) -> Status:
    if runs:
        return "ok"
    return failures[0].status if failures else "not measured"


def _factor(
    preset: str,
    labels: Sequence[str],
    baseline: Sequence[Run],
    by_round: Mapping[int, float],
    card_of_round: Mapping[int, str | None],
) -> tuple[Estimate | None, str | None]:
    if not by_round:
        return None, "not measured"
    if preset == BASELINE:
        return None, REFERENCE
    if EMULATED in labels:
        return None, EMULATED_TIME
    if not baseline:
        return None, "no baseline"
    factor = ratio_interval(_by_round(baseline), by_round, card_of_round)
    return factor, None if factor else "no round shared with baseline"


def _computed_steps(runs: Sequence[Run]) -> ComputedSteps | None:
    kinds = [sample.step_kinds for run in runs for sample in run.samples if sample.step_kinds]
    if not kinds:
        return None
    computed = [sum(kind != "skipped" for kind in of_call) for of_call in kinds]
    return ComputedSteps(min(computed), float(np.mean(computed)), max(computed), max(map(len, kinds)))


def _peaks(runs: Sequence[Run]) -> Memory:
    def largest(name: str) -> int | None:
        values = [getattr(sample.memory, name) for run in runs for sample in run.samples]
        return max((value for value in values if value is not None), default=None)

    return Memory(**{name: largest(name) for name in Memory.model_fields})


def _by_round(runs: Iterable[Run]) -> dict[int, float]:
    values: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        values[run.record.round].append(run.seconds)
    return {round_: float(np.mean(of_round)) for round_, of_round in values.items()}


def _energy(sample: Sample) -> list[float]:
    return [sample.gpu.energy_j] if sample.gpu is not None and sample.gpu.energy_j is not None else []


def _estimate(runs: Iterable[Run], value_of: Callable[[Run], float | None]) -> Estimate | None:
    known = [(value, run.card) for run in runs if (value := value_of(run)) is not None]
    return mean_estimate([value for value, _ in known], [card for _, card in known]) if known else None
