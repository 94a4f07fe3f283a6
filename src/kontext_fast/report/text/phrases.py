"""The sentences of a report that depend on the numbers: what was found, what was not measured, and what to know before
trusting it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.groups import Group, Plan, Run
from kontext_fast.analysis.names import cell_name
from kontext_fast.analysis.rows import Row
from kontext_fast.analysis.tiers import is_meaningless
from kontext_fast.records.names import is_peer, ran_on_gpu
from kontext_fast.records.schema import BASELINE, CONTROL, Sample
from kontext_fast.report.verification import Verdicts, VerdictSummary
from kontext_fast.stats.claims import faster_without_control, speed_claim
from kontext_fast.stats.intervals import LEAST_VALUES
from kontext_fast.stats.series import drift, outliers, percentile

_PERCENTILES = (90, 95, 99)


def checks(group: AnalyzedGroup) -> tuple[str, ...]:
    """One sentence each."""
    if not group.runs:
        return ()
    return (
        _control(group),
        *on_cards(group),
        *of_other_plans(group),
        *(sentence for preset in group.presets for sentence in _of_preset(preset, group.runs_of(preset))),
        *_of_the_card([sample for run in group.runs for sample in run.samples]),
    )


def _control(group: AnalyzedGroup) -> str:
    control, limit = group.control_factor, group.smallest_claim
    if control is not None and control.interval is not None:
        verdict = "excludes 1, which it should not" if control.excludes_one else "contains 1, as expected"
        return (
            f"A/A control: baseline against baseline is {fmt.factor(control)}, with an interval "
            f"({fmt.factor_range(control)}) that {verdict}. "
            f"Differences below {100 * (limit or 0):.1f} % are not claimed."
        )
    if limit is not None:
        return f"A/A control: from the centre of the suite. Differences below {100 * limit:.1f} % are not claimed."
    return "A/A control: none with an interval, so a small factor may be noise."


def on_cards(group: AnalyzedGroup) -> Iterator[str]:
    """What the intervals say of other cards of the same name."""
    cards = {preset: len({run.card for run in group.runs_of(preset)}) for preset in group.presets}
    if not ran_on_gpu(group.runs[0].record.environment):
        return
    most = len({run.card for run in group.runs})
    if most == 1:
        yield "All runs were on one card, so that no interval covers another card of its name."
    elif covering := [preset for preset, count in cards.items() if count >= LEAST_VALUES]:
        rest = " All others cover further runs on the same cards only." if len(covering) < len(cards) else ""
        yield f"Of {most} cards: the intervals of {', '.join(covering)} are over the means of cards.{rest}"
    else:
        yield f"Runs on {most} cards, too few for intervals that cover another one; they cover further runs on these."


def _of_preset(preset: str, runs: Sequence[Run]) -> Iterator[str]:
    values = [run.seconds for run in sorted(runs, key=lambda run: run.record.order)]
    trend = drift(values)
    if trend is not None and trend.significant:
        yield (
            f"{preset} drifted by {100 * trend.change:+.1f} % from its first process to its last "
            f"(Mann-Kendall, p = {trend.p_value:.3f}, n = {trend.n})."
        )
    if indices := outliers(values):
        # In percent, since an outlier among values that are close together may look the same as them in seconds.
        middle = median(values)
        deviations = ", ".join(f"{100 * (values[index] / middle - 1):+.1f} %" for index in indices)
        yield f"{preset} has outliers ({deviations} from the median of its processes), which are not removed."
    calls = [sample.wall_s for run in runs for sample in run.samples]
    known = [(percent, value) for percent in _PERCENTILES if (value := percentile(calls, percent)) is not None]
    if known:
        times = ", ".join(f"p{percent} {fmt.seconds(value)}" for percent, value in known)
        yield f"{preset}: {times} of {len(calls)} calls."
    compiled = sum((sample.graphs_compiled or 0) > 0 for run in runs for sample in run.samples)
    if compiled:
        yield f"{preset} compiled graphs in {fmt.count(compiled, 'measured call')}, and its times include that."


def _of_the_card(samples: Sequence[Sample]) -> Iterator[str]:
    readings = [sample.gpu for sample in samples if sample.gpu is not None]
    if not readings:
        return
    reasons = sorted({reason for reading in readings for reason in reading.throttle_reasons})
    if reasons:
        calls = sum(bool(reading.throttle_reasons) for reading in readings)
        yield f"The GPU throttled in {calls} of {fmt.count(len(readings), 'call')} ({', '.join(reasons)})."
    foreign = sum((reading.foreign_processes or 0) > 0 for reading in readings)
    if foreign:
        yield f"Other processes used the GPU in {foreign} of {fmt.count(len(readings), 'call')}."


def of_other_plans(group: Group) -> tuple[str, ...]:
    """One sentence per difference, with every preset that ran with it and how many runs ended in which status."""
    outcomes: dict[str, Counter[tuple[str, str]]] = {}
    for record in group.of_other_plans:
        difference = plan_difference(record.plan, group.plans[record.preset])
        outcomes.setdefault(difference, Counter())[record.preset, record.status] += 1
    return tuple(
        f"Excluded, since they ran another version of the recipe ({difference}): "
        f"{', '.join(f'{preset} ({n} {status})' for (preset, status), n in runs.items())}."
        for difference, runs in outcomes.items()
    )


def plan_difference(plan: Plan, counted: Plan) -> str:
    """How `plan` differs from the counted one: `torchao_float8.coordinate_descent=true instead of false`."""
    own, other = ({step.name: step for step in steps} for steps in (plan, counted))
    clauses = [f"without {name}" for name in other if name not in own]
    for name, step in own.items():
        if name not in other:
            clauses.append(f"with {name}")
            continue
        usual_step = other[name]
        if step.revision != usual_step.revision:
            clauses.append(f"revision {step.revision} of {name} instead of {usual_step.revision}")
        keys = dict.fromkeys([*step.parameters, *usual_step.parameters])
        values = [(key, _value(step.parameters, key), _value(usual_step.parameters, key)) for key in keys]
        clauses += [f"{name}.{key}={value} instead of {usual}" for key, value, usual in values if value != usual]
    return "; ".join(clauses) or "in another order"


def _value(parameters: Mapping[str, Any], key: str) -> str:
    return json.dumps(parameters[key]) if key in parameters else "unset"


def provenance(groups: Sequence[Group]) -> str:
    """One line for groups of one checkpoint on one machine, of which at least one run was measured."""
    runs = [run for group in groups for run in group.runs]
    names = _joined_names(group.checkpoint.name for group in groups if group.checkpoint)
    machines = _joined_names(group.machine or "an unnamed machine" for group in groups)
    processes = len({run.record.run_id for run in runs})
    calls = sum(len(run.samples) for run in runs)
    return (
        f"{names} on {machines}, {fmt.date_range(run.record.created_at for run in runs)}, "
        f"{fmt.count(processes, 'process', 'processes')}, {fmt.count(calls, 'measured call')}"
    )


def _joined_names(names: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(names))


_MOST_NAMES = 3


def speed_finding(rows: Sequence[Row], limit: float | None = None, verdicts: Verdicts | None = None) -> str:
    """The fastest preset that may be called faster than baseline, its quality, the fastest peer, and what failed.

    `limit` is the smallest difference that the A/A control allows to claim, as a fraction; None without a control.
    """
    compared = [row for row in rows if row.factor is not None and row.preset != CONTROL]
    failed = [row for row in rows if row.time is None]
    sentences = (
        [_fastest(compared, rows, limit, verdicts or {})]
        if compared
        else ["No preset could be compared with baseline."]
    )
    if (peer := _fastest_of(filter(_of_a_peer, rows), limit)) is not None and peer is not fastest(rows, limit):
        sentences.append(f"The fastest peer is {peer.preset}: {_claim(peer)}.")
    elif peer is None and fastest(rows, limit) is not None and (unclaimed := _fastest_without_interval(rows)):
        sentences.append(unclaimed)
    if failed:
        sentences.append(f"Not timed: {_those(failed)}.")
    return " ".join(sentences)


def _fastest_without_interval(rows: Sequence[Row]) -> str | None:
    """A sentence on peers that ran too seldom, so that nobody takes them for slow; None where one has an interval."""
    peers = [(row.factor, row) for row in rows if _of_a_peer(row) and row.factor]
    candidates = [(factor, row) for factor, row in peers if not is_meaningless(row)]
    if not candidates or any(factor.interval for factor, _ in peers):
        return None
    factor, row = max(candidates, key=lambda peer: peer[0].value)
    rounds = fmt.replication(factor, "round")
    return (
        f"No peer ran often enough for an interval, so nothing is claimed of them; the shortest time is that of "
        f"{row.preset}: {fmt.factor(factor)} as fast as baseline in {rounds}."
    )


def _those(failed: Sequence[Row]) -> str:
    """The presets by name where they are few, else by what happened; the table has them all."""
    if len(failed) <= _MOST_NAMES:
        return ", ".join(f"{row.preset} ({row.status})" for row in failed)
    kinds = Counter(row.status for row in failed)
    return f"{fmt.count(len(failed), 'preset')} ({', '.join(f'{n} {status}' for status, n in kinds.most_common())})"


def fastest(rows: Sequence[Row], limit: float | None) -> Row | None:
    """The preset with the largest factor of those that may be called faster than baseline; None where none may.

    A peer is it only where no preset of ours was compared.
    """
    own = [row for row in rows if not _of_a_peer(row)]
    compared = [row for row in own if row.factor is not None and row.preset != CONTROL]
    return _fastest_of(own if compared else rows, limit)


def _of_a_peer(row: Row) -> bool:
    return is_peer(row.preset)


def _fastest_of(rows: Iterable[Row], limit: float | None) -> Row | None:
    compared = [(row.factor, row) for row in rows if row.preset != CONTROL and row.factor is not None]
    faster = [
        (factor.value, row)
        for factor, row in compared
        if (faster_without_control(factor, len(compared)) if limit is None else speed_claim(factor, limit) == "faster")
    ]
    return max(faster, key=lambda candidate: candidate[0])[1] if faster else None


def _fastest(compared: Sequence[Row], rows: Sequence[Row], limit: float | None, verdicts: Verdicts) -> str:
    best = fastest(rows, limit)
    if best is not None:
        return f"{best.preset} is {_claim(best)}. " + _quality(best, rows, verdicts.get(best.preset))
    if all(row.factor and row.factor.interval is None for row in compared):
        return "Fewer than three rounds give no intervals, so no preset can be called faster than baseline yet."
    if limit is not None:
        return (
            "No preset is faster than baseline beyond its 95 % interval and the "
            f"{100 * limit:.1f} % that the A/A control resolves."
        )
    return (
        "No preset is faster than baseline beyond chance, for which more is asked without an A/A control; run `kontext "
        "bench` with its control."
    )


def _claim(row: Row) -> str:
    """What may be said of a row that may be called faster, which has a factor with an interval."""
    assert row.factor is not None
    rounds = fmt.replication(row.factor, "round")
    return f"{fmt.factor(row.factor)} as fast as baseline (95 % interval {fmt.factor_range(row.factor)}, {rounds})"


def _quality(best: Row, rows: Sequence[Row], verdict: VerdictSummary | None) -> str:
    """The verdict of a verification and what the judge of the benchmark accepted, as far as there are any."""
    sentences = [f"Quality verdict: {verdict.name} ({verdict.where})."] if verdict else []
    if best.accepted is not None:
        baseline = next((row.accepted for row in rows if row.preset == BASELINE and row.accepted), None)
        against = f", and {fmt.percent_with_interval(baseline)} of baseline's" if baseline else ""
        items = fmt.count(best.accepted.n, "item")
        share = fmt.percent_with_interval(best.accepted)
        sentences.append(f"The judge accepts {share} of its edits{against}; {items}.")
    return " ".join(sentences) or "Its effect on the images was not measured."


def not_measured(group: AnalyzedGroup, unpriced: str | None) -> tuple[str, ...]:
    """What a reader might look for in this group and will not find, one clause each.

    `unpriced` is why nothing of the group has a price, None where it has one.
    """
    rows = group.ranked
    missing = [f"{row.preset}: {row.reason or row.status}{_cells_of(group, row)}" for row in rows if row.time is None]
    measured = [row for row in rows if row.time is not None]
    if measured and all(row.time and row.time.mean.interval is None for row in measured):
        missing.append(
            "the spread between processes: each preset ran in fewer than three processes, so there are no intervals"
        )
    if measured and all(row.factor is None for row in measured):
        missing.append("factors against baseline")
    if group.checkpoint is not None and group.checkpoint.random_weights:
        missing.append("image quality: the weights are random")
    else:
        unjudged = [row.preset for row in measured if row.accepted is None]
        if unjudged:
            missing.append(f"the judge's acceptance of {', '.join(unjudged)}")
        missing.append("image quality beyond the judge's verdict")
    if measured and all(row.memory.allocated_peak_bytes is None for row in measured):
        missing.append("GPU memory")
    if measured and all(row.energy is None for row in measured):
        missing.append("energy")
    if unpriced:
        missing.append(f"cost: {unpriced}")
    return tuple(missing)


def _cells_of(group: Group, row: Row) -> str:
    """What it should have measured, where no group with a workload says so."""
    if group.workload is not None:
        return ""
    cells = dict.fromkeys(cell for record in group.failures_of(row.preset) for cell in record.cells)
    return f" ({'; '.join(map(cell_name, cells))})" if cells else ""
