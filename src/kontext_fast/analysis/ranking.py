"""In which order presets are listed, and which group of several a report leads with."""

from __future__ import annotations

from collections.abc import Iterable

from kontext_fast.analysis.groups import AnyGroup, Group, by_machine
from kontext_fast.analysis.rows import Row
from kontext_fast.records.schema import BASELINE, CONTROL


def slow_to_fast(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Baseline, its control, the others by their mean time, and last those without a time."""
    return tuple(sorted(rows, key=_place))


def _place(row: Row) -> tuple[int, float]:
    if row.preset in (BASELINE, CONTROL):
        return ((BASELINE, CONTROL).index(row.preset), 0.0)
    return (3, 0.0) if row.time is None else (2, -row.time.mean.value)


USUAL_STEPS = 28
"""Of FLUX.1-Kontext; of several step counts the nearest to it leads."""


def headline_group_first(groups: Iterable[AnyGroup]) -> tuple[AnyGroup, ...]:
    """The group that a report leads with, then the others in their order.

    It is the most demanding one that compares several presets, with the compile cache that the user has.
    """
    listed = tuple(groups)
    if not listed:
        return ()
    leading = max(listed, key=headline_rank)
    return (leading, *(group for group in listed if group is not leading))


def leading_groups(groups: Iterable[AnyGroup]) -> tuple[AnyGroup, ...]:
    """The group to lead with of each checkpoint and machine, the one that a report of them all leads with first."""
    return headline_group_first(headline_group_first(alike)[0] for alike in by_machine(groups))


def headline_rank(group: Group) -> tuple[bool, bool, tuple[int, int, int], int]:
    """A key that sorts the group that a report leads with last."""
    measured = {run.record.preset for run in group.runs}
    return (len(measured) > 1, group.compile_cache == "user", _demanding(group), len(measured))


def _demanding(group: Group) -> tuple[int, int, int]:
    """A key that sorts the most demanding group last: by parameters, pixels, and nearness to the usual steps."""
    parameters = group.checkpoint.transformer_parameters if group.checkpoint else 0
    workload = group.workload
    if workload is None:
        return (parameters, 0, 0)
    return (parameters, workload.width * workload.height, -abs(workload.steps - USUAL_STEPS))
