"""Times that contradict each other: more evaluations of the transformer at one size have to take longer, by about as
much for each of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.rows import Row
from kontext_fast.records.schema import CONTROL

FAR_OFF = 2.0
"""An evaluation more may take so many times as long as on average over the line, or so much shorter."""

Point = tuple[int, float, float]
"""Steps, evaluations and seconds of a call."""


def contradictions(groups: Iterable[AnalyzedGroup]) -> tuple[str, ...]:
    """One sentence for each line of step counts, of one preset at one size, on which times do not grow as steps do."""
    lines: dict[tuple[object, ...], list[Point]] = defaultdict(list)
    for group in groups:
        workload = group.workload
        if workload is None:
            continue
        size = f"{workload.mode}, {workload.width}x{workload.height}, batch {workload.batch}"
        for row in group.rows:
            if row.preset != CONTROL and row.time and row.computed_steps:
                key = (row.preset, size, group.machine, group.checkpoint, group.compile_cache)
                lines[key].append(_point(workload.steps, row))
    return tuple(
        f"{preset} at {size}: {words}, which one time per step cannot explain; measure these step counts again."
        for (preset, size, *_), points in lines.items()
        if (words := _wrong(sorted(points)))
    )


def _point(steps: int, row: Row) -> Point:
    assert row.time is not None
    assert row.computed_steps is not None
    return steps, row.computed_steps.mean, row.time.mean.value


def _wrong(points: Sequence[Point]) -> str | None:
    """The neighbours between which the time grows least like the rest of the line, None where all grow alike."""
    if len(points) < 2 or points[-1][1] <= points[0][1]:
        return None
    usual = (points[-1][2] - points[0][2]) / (points[-1][1] - points[0][1])
    pairs = [
        (before, after, (after[2] - before[2]) / (after[1] - before[1]))
        for before, after in pairwise(points)
        if after[1] > before[1]
    ]
    wrong = [
        (before, after)
        for before, after, each in pairs
        if each <= 0 or (len(points) > 2 and not usual / FAR_OFF < each < usual * FAR_OFF)
    ]
    if not wrong:
        return None
    before, after = min(wrong, key=lambda pair: pair[1][2] - pair[0][2])
    return f"{before[0]} steps take {fmt.seconds(before[2])} and {after[0]} steps {fmt.seconds(after[2])}"
