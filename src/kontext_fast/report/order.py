"""The order in which a reader finds the presets: what they are compared with first, then from slow to fast."""

from __future__ import annotations

from collections.abc import Iterable

from kontext_fast.records.schema import BASELINE, CONTROL
from kontext_fast.report.groups import Group
from kontext_fast.report.headline import Row, headline


def slow_to_fast(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Baseline, its control, the others by their mean time, and last those without a time."""
    return tuple(sorted(rows, key=_place))


def presets_slow_to_fast(group: Group) -> tuple[str, ...]:
    """Those of a group, failed ones included."""
    return tuple(row.preset for row in slow_to_fast(headline(group)))


def _place(row: Row) -> tuple[int, float]:
    if row.preset in (BASELINE, CONTROL):
        return ((BASELINE, CONTROL).index(row.preset), 0.0)
    return (3, 0.0) if row.time is None else (2, -row.time.mean.value)
