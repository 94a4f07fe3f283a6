"""Where the time of a call goes: the stages of the pipeline and the steps by their kind, in seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from kontext_fast.analysis.groups import Group, Run
from kontext_fast.records.samples_csv import STAGES
from kontext_fast.records.schema import Sample, StepKind

STEP_KINDS: tuple[StepKind, ...] = ("full", "skipped")


@dataclass(frozen=True)
class StageRow:
    """Means over processes; a stage or kind that no call had is absent."""

    preset: str
    stages: Mapping[str, float]
    """Seconds per call, keys of `STAGES`."""
    rest: float
    """Seconds per call outside the stages."""
    steps: Mapping[StepKind, float]
    """Seconds of one step of each kind."""


def stage_rows(group: Group) -> tuple[StageRow, ...]:
    """A row for every preset that was measured; none for one whose calls were not taken apart, as under a load."""
    rows = (_row(preset, runs) for preset in group.presets if (runs := group.runs_of(preset)))
    return tuple(row for row in rows if row.stages or row.steps)


def _row(preset: str, runs: tuple[Run, ...]) -> StageRow:
    stages = {stage: value for stage in STAGES if (value := _mean(runs, partial(_stage_of, stage))) is not None}
    steps = {kind: value for kind in STEP_KINDS if (value := _mean(runs, partial(_steps_of, kind))) is not None}
    whole = fmean(run.seconds for run in runs)
    return StageRow(preset, stages, whole - sum(stages.values()), steps)


def _mean(runs: tuple[Run, ...], values_of: Callable[[Sample], list[float]]) -> float | None:
    """The mean over the processes that have such values."""
    processes = [value for run in runs if (value := run.mean(values_of)) is not None]
    return fmean(processes) if processes else None


def _stage_of(stage: str, sample: Sample) -> list[float]:
    return [sample.stages_s[stage]] if stage in sample.stages_s else []


def _steps_of(kind: StepKind, sample: Sample) -> list[float]:
    pairs = zip(sample.steps_s, sample.step_kinds, strict=False)
    return [seconds for seconds, of_kind in pairs if of_kind == kind]
