"""What a call costs in time, as the billing models need it, read from the rows of a benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.rows import Row
from kontext_fast.analysis.served_load import LoadSummary, load_summary
from kontext_fast.errors import InvalidInput
from kontext_fast.stats.intervals import Estimate, mean_estimate

AS_SERVED: Final = "as served under load: card time, idle time included, per image served in time"
_HOUR_S: Final = 3600.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one GPU needs for one call."""

    seconds: Estimate
    """Wall time per call; the lower end of its interval is cut at 0."""
    images_per_call: int = 1
    gpus: int = 1
    """That make a call together. All times here are GPU time: so many seconds for each that passes."""
    load_s: float | None = 0.0
    """Loading the checkpoint; None, like the next, where it was not measured."""
    prepare_s: float | None = 0.0
    """Applying the preset, and the first call beyond an ordinary one, compilation included."""
    run_ids: tuple[str, ...] = ()
    """The records that the time came from."""
    busy_share: float = 1.0
    """Of the seconds, the share in which the card ran jobs. It is below 1 where the seconds are those of a card that
    was held under load, per image that was served in time."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds.value) and self.seconds.value > 0):
            raise InvalidInput(f"A call of {self.seconds.value} s cannot be priced: give a time above 0.")
        if self.images_per_call < 1:
            raise InvalidInput(f"A call of {self.images_per_call} images cannot be priced: it makes at least one.")
        for start_s in (self.load_s, self.prepare_s):
            if start_s is not None and not (math.isfinite(start_s) and start_s >= 0):
                raise InvalidInput(f"A start of {start_s} s is not a time: give 0 or more.")

    def highest_load(self, rho_max: float) -> float:
        """Of a fleet: `rho_max`, or all of it where the seconds hold the idle time of a load test already."""
        return 1.0 if self.busy_share < 1 else rho_max

    @property
    def cold_start_s(self) -> float | None:
        """From nothing to the first image, beyond that image's own time."""
        return None if self.load_s is None or self.prepare_s is None else self.load_s + self.prepare_s


@dataclass(frozen=True)
class PresetWork:
    """One preset of a group; `work` is None where nothing that could be priced was measured, and `note` says why."""

    row: Row
    work: Work | None
    note: str | None

    @property
    def preset(self) -> str:
        return self.row.preset

    @property
    def labels(self) -> tuple[str, ...]:
        """What must be said beside its numbers."""
        labels = list(self.row.labels)
        if self.work is not None and self.work.busy_share < 1:
            labels.append(AS_SERVED)
        if self.work is not None and self.work.gpus > 1:
            labels.append(f"time of {self.work.gpus} GPUs: a second that passes counts {self.work.gpus} times")
        return tuple(labels)

    @property
    def peak_bytes(self) -> int | None:
        """The most GPU memory that is known to have been held; None where none was counted."""
        memory = self.row.memory
        peaks = (memory.device_process_peak_bytes, memory.reserved_peak_bytes, memory.allocated_peak_bytes)
        return max((peak for peak in peaks if peak is not None), default=None)


def preset_works(group: AnalyzedGroup, load_s: float | None = None) -> tuple[PresetWork, ...]:
    """Of every preset of the group, in its order. `load_s` is what loading takes where the records cannot tell it."""
    return tuple(_preset_work(group, row, load_s) for row in group.rows)


def is_load_known(group: AnalyzedGroup) -> bool:
    """Whether the records tell how long loading takes: random weights are drawn on the device, not read from a disk."""
    return group.checkpoint is None or not group.checkpoint.random_weights


def paired_half_s(baseline: PresetWork, other: PresetWork) -> float | None:
    """Half width of the 95 % interval of the GPU seconds saved per call, paired by round; None where
    the rounds that both have are too few for one, or where either has no time that could be priced."""
    slow, fast = baseline.row.by_round, other.row.by_round
    rounds = sorted(slow.keys() & fast.keys())
    if not rounds or baseline.work is None or other.work is None:
        return None
    cards = [baseline.row.card_of_round[r] for r in rounds]
    before, after = baseline.work.gpus, other.work.gpus
    interval = mean_estimate([before * slow[r] - after * fast[r] for r in rounds], cards).interval
    return None if interval is None else (interval[1] - interval[0]) / 2


def _preset_work(group: AnalyzedGroup, row: Row, load_s: float | None) -> PresetWork:
    if row.time is None or row.no_speed:
        return PresetWork(row, None, row.no_speed)
    tests = [load_summary(run.record.load_test) for run in group.runs_of(row.preset) if run.record.load_test]
    if tests:
        return _served_work(group, row, tests)
    gpus = _gpus(group, row.preset)
    load_s, prepare_s = _load_s(group, row) if load_s is None else load_s, _prepare_s(row)
    work = Work(
        seconds=_times(row.time.mean, gpus),
        images_per_call=group.workload.batch if group.workload else 1,
        gpus=gpus,
        load_s=None if load_s is None else gpus * load_s,
        prepare_s=None if prepare_s is None else gpus * prepare_s,
        run_ids=group.run_ids(row.preset),
    )
    return PresetWork(row, work, None)


def _served_work(group: AnalyzedGroup, row: Row, tests: Sequence[LoadSummary]) -> PresetWork:
    """Of load tests, each of which is a unit of replication."""
    if not all(test.images_per_card_hour for test in tests):
        return PresetWork(row, None, "a load test served no image in time")
    held = [_HOUR_S / test.images_per_card_hour for test in tests]
    busy = sum(test.busy_share for test in tests) / len(tests)
    work = Work(
        seconds=mean_estimate(held),
        load_s=None,
        prepare_s=None,
        run_ids=group.run_ids(row.preset),
        busy_share=min(busy, math.nextafter(1.0, 0.0)),
    )
    return PresetWork(row, work, None)


def _gpus(group: AnalyzedGroup, preset: str) -> int:
    """How many GPUs make each call of a preset together, by the plan of its runs."""
    plans = [run.record.plan for run in group.runs_of(preset)]
    return max((int(applied.parameters.get("gpus", 1)) for plan in plans for applied in plan), default=1)


def _times(estimate: Estimate, factor: int) -> Estimate:
    interval = estimate.interval and (factor * estimate.interval[0], factor * estimate.interval[1])
    return replace(estimate, value=factor * estimate.value, interval=interval)


def _load_s(group: AnalyzedGroup, row: Row) -> float | None:
    if not is_load_known(group):
        return 0.0
    return row.load.value if row.load else None


def _prepare_s(row: Row) -> float | None:
    if row.apply is None or row.first_call is None or row.time is None:
        return None
    return row.apply.value + max(0.0, row.first_call.value - row.time.mean.value)
