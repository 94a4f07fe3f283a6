"""The analysis of a file of benchmark records: every group of comparable runs with its rows, computed once and handed
to whatever prices, draws or prints them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from kontext_fast.analysis.groups import Group, groups
from kontext_fast.analysis.ranking import slow_to_fast
from kontext_fast.analysis.rows import Row, headline
from kontext_fast.analysis.stages import StageRow, stage_rows
from kontext_fast.records.schema import CONTROL, ResultFile
from kontext_fast.stats.claims import resolution
from kontext_fast.stats.intervals import Estimate


@dataclass(frozen=True, kw_only=True)
class AnalyzedGroup(Group):
    """A group and what was computed from its runs."""

    rows: tuple[Row, ...]
    """One per preset, in the order of `presets`."""
    stages: tuple[StageRow, ...]
    """Of every preset whose stages were measured, in the order of `ranked`."""
    smallest_claim: float | None
    """The smallest difference, as a fraction, that may be claimed; None without an A/A control."""

    @cached_property
    def ranked(self) -> tuple[Row, ...]:
        """The rows from slow to fast."""
        return slow_to_fast(self.rows)

    @property
    def control_factor(self) -> Estimate | None:
        """Baseline against itself; None where the control was not run."""
        return _control_factor(self.rows)

    def row(self, preset: str) -> Row | None:
        return next((row for row in self.rows if row.preset == preset), None)

    def by_round(self, preset: str) -> Mapping[int, float]:
        """Seconds per call of each round's process; empty where the preset was not measured."""
        row = self.row(preset)
        return row.by_round if row else {}


def analyze_benchmark(result: ResultFile) -> tuple[AnalyzedGroup, ...]:
    """The groups in the order in which they were first measured; see `groups`."""
    measured = [(group, headline(group)) for group in groups(result)]
    controls = [(group, resolution(_control_factor(rows))) for group, rows in measured]
    return tuple(_analyzed(group, rows, _smallest_claim(group, controls)) for group, rows in measured)


def _analyzed(group: Group, rows: tuple[Row, ...], limit: float | None) -> AnalyzedGroup:
    order = [row.preset for row in slow_to_fast(rows)]
    stages = sorted(stage_rows(group), key=lambda row: order.index(row.preset))
    return AnalyzedGroup(**vars(group), rows=rows, stages=tuple(stages), smallest_claim=limit)


def _control_factor(rows: Iterable[Row]) -> Estimate | None:
    return next((row.factor for row in rows if row.preset == CONTROL), None)


def _smallest_claim(group: Group, controls: Iterable[tuple[Group, float | None]]) -> float | None:
    """What the group's own control resolves, else the widest control of the same checkpoint, machine and compile cache:
    only the centre of a suite has a control of its own.
    """
    limits = {id(other): limit for other, limit in controls if limit is not None and _alike(other, group)}
    return limits.get(id(group), max(limits.values(), default=None))


def _alike(group: Group, other: Group) -> bool:
    return all(getattr(group, name) == getattr(other, name) for name in ("checkpoint", "machine", "compile_cache"))
