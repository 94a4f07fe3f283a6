"""Two benchmarks of the same thing, before and after a change: what became slower, faster or fails.

A preset is compared by its time relative to baseline of the same rounds, so that a machine that was slower on another
day is no regression; baseline itself, and presets without one, are compared by their times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from kontext_fast.analysis.benchmark import AnalyzedGroup, analyze_benchmark
from kontext_fast.analysis.names import group_name
from kontext_fast.analysis.rows import EMULATED_TIME
from kontext_fast.errors import InvalidInput
from kontext_fast.records.names import machine_name
from kontext_fast.records.schema import BASELINE, CONTROL, EMULATED, Checkpoint, ResultFile
from kontext_fast.stats.claims import detectable_slowdown
from kontext_fast.stats.intervals import (
    LEAST_VALUES,
    Estimate,
    card_values,
    exponential_of,
    log_ratios,
    unpaired_log_ratio,
    welch_error,
)

Outcome = Literal["regression", "fails now", "slower, below the threshold", "faster", "no change found", "cannot tell"]

REGRESSIONS: tuple[Outcome, ...] = ("regression", "fails now")


@dataclass(frozen=True)
class Change:
    """One preset on one workload. Times are in seconds per call."""

    workload: str
    preset: str
    before: Estimate | None
    after: Estimate | None
    """None where it fails now."""
    ratio: Estimate | None
    """Time after over time before: above 1 is slower."""
    relative: bool
    """Whether `ratio` is of times relative to baseline's."""
    detectable: float | None
    """The slow-down, as a fraction, that this comparison finds with 80 % power."""
    outcome: Outcome
    note: str | None = None


@dataclass(frozen=True)
class Comparison:
    changes: tuple[Change, ...]
    left_out: tuple[str, ...]
    """What only one of the two measured, one clause each."""

    @property
    def regressions(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.outcome in REGRESSIONS)


def compare(before: ResultFile, after: ResultFile, threshold: float) -> Comparison:
    """Compare what both measured; a slow-down below the fraction `threshold` is no regression.

    Raises InvalidInput where the two share no card, no weights or no workload.
    """
    _check_alike(before, after)
    old, new = analyze_benchmark(before), analyze_benchmark(after)
    pairs = [(a, b) for a in old for b in new if a.workload is not None and _key(a) == _key(b)]
    if not pairs:
        raise InvalidInput(
            f"A and B share no workload with the same items: A has {_workloads(old)}, B {_workloads(new)}; "
            "measure both with the same suite."
        )
    changes: list[Change] = []
    left_out: list[str] = []
    for a, b in pairs:
        for preset in a.presets:
            if preset == CONTROL or not a.runs_of(preset):
                continue
            if b.runs_of(preset) or b.failures_of(preset):
                changes.append(_change(preset, a, b, threshold))
            else:
                left_out.append(f"{preset} on {group_name(a)} is only in A")
        new_ones = [p for p in b.presets if p != CONTROL and b.runs_of(p) and not a.runs_of(p)]
        left_out += [f"{preset} on {group_name(b)} is only in B" for preset in new_ones]
    left_out += _unpaired(old, [a for a, _ in pairs], "A") + _unpaired(new, [b for _, b in pairs], "B")
    return Comparison(tuple(changes), tuple(left_out))


def _workloads(groups: Sequence[AnalyzedGroup]) -> str:
    names = list(dict.fromkeys(group_name(group) for group in groups if group.workload))
    return " and ".join([*names[:3], *([f"{len(names) - 3} more"] if len(names) > 3 else [])]) or "none"


def _check_alike(before: ResultFile, after: ResultFile) -> None:
    machines = [_machines(result) for result in (before, after)]
    if not machines[0] & machines[1]:
        a, b = (" and ".join(sorted(names)) or "an unknown machine" for names in machines)
        raise InvalidInput(f"A was measured on {a}, B on {b}; measure both on the same card to compare them.")
    weights = [{_weights(record.checkpoint) for record in result.records} - {None} for result in (before, after)]
    if not weights[0] & weights[1]:
        a, b = (" and ".join(sorted(map(_named, names))) or "no weights" for names in weights)
        raise InvalidInput(f"A ran {a}, B {b}; measure the same weights in the same precision to compare them.")


def _machines(result: ResultFile) -> set[str]:
    names = {machine_name(record.environment) for record in result.records}
    return {name for name in names if name is not None}


_Weights = tuple[str, str]


def _weights(checkpoint: Checkpoint | None) -> _Weights | None:
    """What makes two checkpoints the same: random weights come from a seed, so their name says it all."""
    return None if checkpoint is None else (checkpoint.weights_sha256 or checkpoint.name, checkpoint.dtype)


def _named(weights: _Weights | None) -> str:
    digest, dtype = weights or ("", "")
    return f"{digest[:12]} in {dtype}"


def _key(group: AnalyzedGroup) -> tuple[object, ...]:
    return _weights(group.checkpoint), group.machine, group.workload, group.compile_cache


def _unpaired(groups: Iterable[AnalyzedGroup], paired: Sequence[AnalyzedGroup], side: str) -> list[str]:
    return [f"{group_name(group)} is only in {side}" for group in groups if group.workload and group not in paired]


def _change(preset: str, a: AnalyzedGroup, b: AnalyzedGroup, threshold: float) -> Change:
    before, after = (row.time.mean if (row := group.row(preset)) and row.time else None for group in (a, b))
    if after is None:
        failure = b.failures_of(preset)[0]
        note = f"{failure.status}: {failure.reason}"
        return Change(group_name(a), preset, before, None, None, False, None, "fails now", note)
    relative = preset != BASELINE and all(g.by_round(BASELINE).keys() & g.by_round(preset).keys() for g in (a, b))
    logs_before, logs_after = (_logs(group, preset, relative) for group in (a, b))
    ratio = exponential_of(unpaired_log_ratio(logs_before, logs_after))
    emulated = any(EMULATED in run.record.labels for group in (a, b) for run in group.runs_of(preset))
    limit = max(group.smallest_claim or 0.0 for group in (a, b))
    return Change(
        workload=group_name(a),
        preset=preset,
        before=before,
        after=after,
        ratio=ratio,
        relative=relative,
        detectable=_detectable(logs_before, logs_after),
        outcome="cannot tell" if emulated else _outcome(ratio, threshold, limit),
        note=EMULATED_TIME if emulated else None,
    )


def _logs(group: AnalyzedGroup, preset: str, relative: bool) -> list[float]:
    """One logarithm per round, or per card of enough cards: of its time, or of its time over baseline's."""
    own, reference = group.by_round(preset), group.by_round(BASELINE)
    logs = log_ratios(own, reference) if relative else [math.log(own[round_]) for round_ in sorted(own)]
    rounds = sorted(own.keys() & reference.keys()) if relative else sorted(own)
    return card_values(logs, [group.card_of_round[round_] for round_ in rounds])


def _detectable(before: Sequence[float], after: Sequence[float]) -> float | None:
    if min(len(before), len(after)) < LEAST_VALUES:
        return None
    error, freedom = welch_error(before, after)
    return detectable_slowdown(error, freedom) if error > 0 else 0.0


def _outcome(ratio: Estimate | None, threshold: float, limit: float) -> Outcome:
    """'No change' requires an interval that excludes a regression; otherwise the result is inconclusive."""
    if ratio is None or ratio.interval is None:
        return "cannot tell"
    if not ratio.excludes_one or abs(math.log(ratio.value)) <= math.log1p(limit):
        return "no change found" if ratio.interval[1] < 1 + threshold else "cannot tell"
    if ratio.value < 1:
        return "faster"
    return "regression" if ratio.value >= 1 + threshold else "slower, below the threshold"
