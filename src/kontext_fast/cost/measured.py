"""From runs to `Work`: the times that a group's records hold, as the billing models want them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from kontext_fast.analysis.groups import Group
from kontext_fast.analysis.rows import Row, headline, process_values
from kontext_fast.cost.billing import Work
from kontext_fast.records.schema import EMULATED, Memory
from kontext_fast.stats.intervals import mean_estimate


@dataclass(frozen=True)
class Measured:
    """One preset of a group; `work` is None where nothing that could be priced was measured, and `note` says why."""

    row: Row
    work: Work | None
    note: str | None
    by_round: dict[int, float]
    """Seconds per call of each round."""

    @property
    def peak_bytes(self) -> int | None:
        return peak_bytes(self.row.memory)


def measured(group: Group) -> tuple[Measured, ...]:
    """Every preset of the group, in its order."""
    return tuple(_measured(group, row) for row in headline(group))


def paired_half_s(baseline: Measured, other: Measured) -> float | None:
    """Half width of the 95 % interval of the seconds saved per call, paired by round; None below two shared rounds."""
    rounds = sorted(baseline.by_round.keys() & other.by_round.keys())
    if len(rounds) < 2:
        return None
    interval = mean_estimate([baseline.by_round[r] - other.by_round[r] for r in rounds]).interval
    return None if interval is None else (interval[1] - interval[0]) / 2


def peak_bytes(memory: Memory) -> int | None:
    """The most GPU memory that is known to have been held; None where none was counted."""
    peaks = (memory.device_process_peak_bytes, memory.reserved_peak_bytes, memory.allocated_peak_bytes)
    return max((peak for peak in peaks if peak is not None), default=None)


def _measured(group: Group, row: Row) -> Measured:
    runs = group.runs_of(row.preset)
    if row.time is None:
        return Measured(row, None, f"{row.status}: {row.reason}" if row.reason else row.status, {})
    if EMULATED in row.labels:
        return Measured(row, None, "emulated kernel: not a speed, so not a cost", {})
    rounds: dict[int, list[float]] = defaultdict(list)
    for run, value in zip(runs, process_values(runs), strict=True):
        rounds[run.record.round].append(value)
    work = Work(
        seconds=row.time.mean,
        images_per_call=group.workload.batch if group.workload else 1,
        load_s=row.load.value if row.load else None,
        prepare_s=_prepare_s(row),
        run_ids=tuple(run.record.run_id for run in runs),
    )
    return Measured(row, work, None, {round_: float(np.mean(values)) for round_, values in rounds.items()})


def _prepare_s(row: Row) -> float | None:
    if row.apply is None or row.first_call is None or row.time is None:
        return None
    return row.apply.value + max(0.0, row.first_call.value - row.time.mean.value)
