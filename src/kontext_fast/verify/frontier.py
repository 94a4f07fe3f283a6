"""Quality against time: presets, and baseline with plain fewer steps, with which they are compared. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kontext_fast.metrics.base import Role, discover
from kontext_fast.records.schema import EMULATED, Record, ResultFile
from kontext_fast.stats.bounds import mean_bounds
from kontext_fast.verify.analysis import ArmScores, VerificationAnalysis
from kontext_fast.verify.comparisons import item_means
from kontext_fast.verify.verdict import Level

Kind = Literal["baseline", "preset", "steps"]


@dataclass(frozen=True)
class Change:
    """A metric's mean difference from baseline with one-sided bounds; below 0 is worse."""

    mean: float
    lower: float
    upper: float


@dataclass(frozen=True)
class FrontierPoint:
    """One way to make the items: its time and its quality."""

    name: str
    kind: Kind
    level: Level | None
    """None for baseline."""
    edit_s: float | None
    """Median of single edits; None where it was not measured."""
    slowest_s: float | None
    fastest_s: float | None
    no_time: str | None
    """Why there is no time."""
    changes: Mapping[str, Change]
    """By quality metric, of those that are sensitive."""


@dataclass(frozen=True)
class Frontier:
    points: tuple[FrontierPoint, ...]
    """Baseline first, then presets, then fewer steps, most steps first."""
    metrics: tuple[str, ...]
    """Primary quality metrics that were measured and are sensitive."""
    again_s: float | None
    """Baseline timed again at the end, which shows how far the times of this verification can be trusted."""

    def of(self, kind: Kind) -> tuple[FrontierPoint, ...]:
        return tuple(point for point in self.points if point.kind == kind)


def frontier(result: ResultFile, analysis: VerificationAnalysis) -> Frontier | None:
    """The points of a verification that ran with a frontier; None for any other."""
    arms = ArmScores(result.records)
    if arms.baseline is None or not (arms.baseline.edits_s or analysis.fewer_steps):
        return None
    metrics = tuple(
        metric.name
        for metric in discover().values()
        if metric.role is Role.QUALITY
        and metric.name in analysis.margins.primary
        and metric.name not in analysis.insensitive
        and arms.measured(metric.name)
    )
    levels = {preset.preset: preset.verdict.level for preset in (*analysis.presets, *analysis.fewer_steps)}

    def point(record: Record, kind: Kind) -> FrontierPoint:
        name = record.arm.name if record.arm else record.preset
        times = record.edits_s
        return FrontierPoint(
            name=name,
            kind=kind,
            level=levels.get(name),
            edit_s=float(np.median(times)) if times else None,
            slowest_s=max(times, default=None),
            fastest_s=min(times, default=None),
            no_time=None if times else _why_no_time(record),
            changes=_changes(arms, name, metrics, analysis.margins.confidence),
        )

    points = [point(arms.baseline, "baseline")]
    points += [point(record, "preset") for record in arms.presets]
    points += [point(record, "steps") for record in arms.fewer_steps]
    again = [time for record in arms.rerun for time in record.edits_s]
    return Frontier(tuple(points), metrics, float(np.median(again)) if again else None)


def quality_of_fewer_steps(frontier: Frontier, metric: str, edit_s: float) -> float | None:
    """The mean change of baseline with the number of steps that takes `edit_s`, interpolated between two numbers.

    None where `edit_s` is outside the measured range.
    """
    line = sorted(
        (point.edit_s, point.changes[metric].mean)
        for point in (*frontier.of("steps"), *frontier.of("baseline"))
        if point.edit_s is not None and metric in point.changes
    )
    if not line or not line[0][0] <= edit_s <= line[-1][0]:
        return None
    times, changes = zip(*line, strict=True)
    return float(np.interp(edit_s, times, changes))


def _changes(arms: ArmScores, name: str, metrics: Sequence[str], confidence: float) -> dict[str, Change]:
    changes = {}
    for metric in map(discover().__getitem__, metrics):
        values = item_means(arms.differences(metric, name))
        if len(values) >= 2:
            bounds = mean_bounds(values, confidence, bounded=metric.bounded)
            changes[metric.name] = Change(float(bounds.mean), float(bounds.lower), float(bounds.upper))
    return changes


def _why_no_time(record: Record) -> str:
    if EMULATED in record.labels:
        return "emulated kernels: not a speed"
    return record.reason or "not measured"
