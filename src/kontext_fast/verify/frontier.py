"""Quality against time: presets, and baseline with nothing but fewer steps, which a preset has to beat. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kontext_fast.metrics.base import Role, discover
from kontext_fast.records.schema import EMULATED, Record, ResultFile
from kontext_fast.stats.bounds import mean_bounds
from kontext_fast.verify.analysis import Arms, VerificationAnalysis
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
class Point:
    """One way to make the items, where it lies in time and in quality."""

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
    """By metric of quality that sees."""


@dataclass(frozen=True)
class Frontier:
    points: tuple[Point, ...]
    """Baseline first, then presets, then fewer steps, most steps first."""
    metrics: tuple[str, ...]
    """Those of quality that see and were measured, primary ones only."""
    again_s: float | None
    """Baseline timed again at the end: how far times of this verification can be trusted."""

    def of(self, kind: Kind) -> tuple[Point, ...]:
        return tuple(point for point in self.points if point.kind == kind)


def frontier(result: ResultFile, found: VerificationAnalysis) -> Frontier | None:
    """The points of a verification that was asked for them; None for any other."""
    arms = Arms(result.records)
    if arms.baseline is None or not (arms.baseline.edits_s or found.fewer_steps):
        return None
    metrics = tuple(
        metric.name
        for metric in discover().values()
        if metric.role is Role.QUALITY
        and metric.name in found.margins.primary
        and metric.name not in found.blind
        and arms.measured(metric.name)
    )
    levels = {one.preset: one.verdict.level for one in (*found.presets, *found.fewer_steps)}

    def point(record: Record, kind: Kind) -> Point:
        name = record.arm.name if record.arm else record.preset
        times, no_time = record.edits_s, None
        if not times:
            no_time = _why_no_time(record)
        return Point(
            name=name,
            kind=kind,
            level=levels.get(name),
            edit_s=float(np.median(times)) if times else None,
            slowest_s=max(times, default=None),
            fastest_s=min(times, default=None),
            no_time=no_time,
            changes=_changes(arms, name, metrics, found.margins.confidence),
        )

    points = [point(arms.baseline, "baseline")]
    points += [point(record, "preset") for record in arms.presets]
    points += [point(record, "steps") for record in arms.fewer_steps]
    again = [time for record in arms.repeated for time in record.edits_s]
    return Frontier(tuple(points), metrics, float(np.median(again)) if again else None)


def quality_of_fewer_steps(found: Frontier, metric: str, edit_s: float) -> float | None:
    """The mean change that baseline has with as many steps as fit into `edit_s`, on the line between two counts.

    None where `edit_s` is outside of what was measured.
    """
    line = sorted(
        (point.edit_s, point.changes[metric].mean)
        for point in (*found.of("steps"), *found.of("baseline"))
        if point.edit_s is not None and metric in point.changes
    )
    if not line or not line[0][0] <= edit_s <= line[-1][0]:
        return None
    times, changes = zip(*line, strict=True)
    return float(np.interp(edit_s, times, changes))


def _changes(arms: Arms, name: str, metrics: Sequence[str], confidence: float) -> dict[str, Change]:
    found = {}
    for metric in metrics:
        kind = discover()[metric]
        values = item_means(arms.differences(kind, name))
        if len(values) >= 2:
            bounds = mean_bounds(values, confidence, bounded=kind.bounded)
            found[metric] = Change(float(bounds.mean), float(bounds.lower), float(bounds.upper))
    return found


def _why_no_time(record: Record) -> str:
    if EMULATED in record.labels:
        return "emulated kernels: not a speed"
    return record.reason or "not measured"
