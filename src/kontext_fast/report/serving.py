"""What a server can expect of one GPU: images an hour, the first image of a process, and what batches bring."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.names import workload_name
from kontext_fast.analysis.rows import Row
from kontext_fast.analysis.tiers import shown_rows
from kontext_fast.cost.billing import images_per_hour
from kontext_fast.records.names import parse_ablation
from kontext_fast.records.schema import CONTROL
from kontext_fast.stats.intervals import Estimate


@dataclass(frozen=True)
class ServingRow:
    """One preset at the workload that a report leads with."""

    preset: str
    per_hour: Estimate
    """Images of one GPU that never waits."""
    first_image_s: float | None
    """Applying the preset and the first call; loading the weights comes before."""
    call_s: Estimate
    row: Row
    shown: bool
    """Whether it stands in the table that is open."""


@dataclass(frozen=True)
class BatchLine:
    """One preset at one size and step count with batches of several sizes."""

    workload: str
    preset: str
    per_hour: tuple[tuple[int, Estimate], ...]
    """By batch."""


def serving_rows(group: AnalyzedGroup) -> tuple[ServingRow, ...]:
    """A row for every preset that has a time, slow to fast."""
    shown = {row.preset for row in shown_rows(group)}
    return tuple(
        ServingRow(
            preset=row.preset,
            per_hour=_per_hour(row.time.mean, _batch(group)),
            first_image_s=_first_image_s(row),
            call_s=row.time.mean,
            row=row,
            shown=row.preset in shown,
        )
        for row in group.ranked
        if row.time and row.preset != CONTROL and parse_ablation(row.preset) is None
    )


def batch_lines(groups: Iterable[AnalyzedGroup]) -> tuple[BatchLine, ...]:
    """A line for every preset that was measured with more than one size of a batch, all else being equal."""
    rates: dict[tuple[str, str], dict[int, Estimate]] = {}
    for group in groups:
        if group.workload is None or group.compile_cache != "user":
            continue
        alike = _without_batch(group)
        for row in group.rows:
            if row.time and row.preset != CONTROL:
                per_hour = _per_hour(row.time.mean, _batch(group))
                rates.setdefault((alike, row.preset), {})[_batch(group)] = per_hour
    return tuple(
        BatchLine(workload, preset, tuple(sorted(by_batch.items())))
        for (workload, preset), by_batch in rates.items()
        if len(by_batch) > 1
    )


def _without_batch(group: AnalyzedGroup) -> str:
    """The name of the group's workload, whatever its batch."""
    assert group.workload is not None
    return workload_name(group.workload.model_copy(update={"batch": 1}))


def _batch(group: AnalyzedGroup) -> int:
    return group.workload.batch if group.workload else 1


def _per_hour(call_s: Estimate, batch: int) -> Estimate:
    """The ends of the interval change places: a longer call makes fewer images."""
    interval = call_s.interval
    ends = None
    if interval is not None and interval[0] > 0:
        ends = (images_per_hour(interval[1], batch), images_per_hour(interval[0], batch))
    return replace(call_s, value=images_per_hour(call_s.value, batch), interval=ends)


def _first_image_s(row: Row) -> float | None:
    if row.apply is None or row.first_call is None:
        return None
    return row.apply.value + row.first_call.value
