"""Where the numbers of a chart come from: checkpoint, machine, date and how many processes and calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kontext_fast.report import format as write
from kontext_fast.report.groups import Group


def origin(of: Sequence[Group]) -> str:
    """One line for groups of one checkpoint on one machine, of which at least one run was measured."""
    runs = [run for group in of for run in group.runs]
    names = _joined(group.checkpoint.name for group in of if group.checkpoint)
    machines = _joined(group.machine or "an unnamed machine" for group in of)
    dates = sorted({write.date(run.record.created_at) for run in runs})
    processes = len({run.record.run_id for run in runs})
    calls = sum(len(run.samples) for run in runs)
    return (
        f"{names} on {machines}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, "
        f"{write.count(processes, 'process', 'processes')}, {write.count(calls, 'measured call')}"
    )


def kin(of: Iterable[Group]) -> list[list[Group]]:
    """Groups with runs, gathered by checkpoint and machine, whose numbers may stand in one chart."""
    found: dict[object, list[Group]] = {}
    for group in of:
        if group.runs:
            found.setdefault((group.checkpoint, group.machine), []).append(group)
    return list(found.values())


def _joined(names: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(names))
