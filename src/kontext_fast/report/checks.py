"""What a reader should know before trusting the times of a group: what the benchmark found out about itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from kontext_fast.records.schema import Sample
from kontext_fast.report import format as write
from kontext_fast.report.control import control_factor
from kontext_fast.report.groups import Group, Run
from kontext_fast.report.headline import Row, headline, process_values
from kontext_fast.report.other_plans import of_other_plans
from kontext_fast.stats.series import drift, outliers, percentile

_PERCENTILES = (90, 95, 99)


def checks(group: Group, limit: float | None) -> tuple[str, ...]:
    """One sentence each; `limit` is the smallest difference that may be claimed, None without a control."""
    rows = headline(group)
    if not group.runs:
        return ()
    return (
        _control(rows, limit),
        *of_other_plans(group),
        *(sentence for preset in group.presets for sentence in _of_preset(preset, group.runs_of(preset))),
        *_of_the_card([sample for run in group.runs for sample in run.samples]),
    )


def _control(rows: Sequence[Row], limit: float | None) -> str:
    own = control_factor(rows)
    if own is not None and own.interval is not None:
        verdict = "which excludes 1 and should not" if own.excludes_one else "which contains 1 as it should"
        return (
            f"A/A control: baseline against itself is {write.factor(own)} ({write.factor_range(own)}), {verdict}; "
            f"no difference below {100 * (limit or 0):.1f} % is claimed."
        )
    if limit is not None:
        return f"A/A control: measured at the centre of the suite; no difference below {100 * limit:.1f} % is claimed."
    return "A/A control: none with an interval, so small factors may be those of equals."


def _of_preset(preset: str, runs: Sequence[Run]) -> Iterator[str]:
    values = process_values(sorted(runs, key=lambda run: run.record.order))
    moved = drift(values)
    if moved is not None and moved.found:
        yield (
            f"{preset} drifted by {100 * moved.change:+.1f} % from its first process to its last "
            f"(Mann-Kendall, p = {moved.p_value:.3f}, n = {moved.n})."
        )
    if far := outliers(values):
        # In percent: what lies far from values that are close together may look like them in seconds.
        middle = median(values)
        apart = ", ".join(f"{100 * (values[index] / middle - 1):+.1f} %" for index in far)
        yield f"{preset} has processes far from its median ({apart}); they are kept."
    calls = [sample.wall_s for run in runs for sample in run.samples]
    known = [(percent, value) for percent in _PERCENTILES if (value := percentile(calls, percent)) is not None]
    if known:
        times = ", ".join(f"p{percent} {write.seconds(value)}" for percent, value in known)
        yield f"{preset}: {times} of {len(calls)} calls."
    compiled = sum((sample.graphs_compiled or 0) > 0 for run in runs for sample in run.samples)
    if compiled:
        yield f"{preset} compiled something in {write.count(compiled, 'measured call')}, which its time includes."


def _of_the_card(samples: Sequence[Sample]) -> Iterator[str]:
    readings = [sample.gpu for sample in samples if sample.gpu is not None]
    if not readings:
        return
    reasons = sorted({reason for reading in readings for reason in reading.throttle_reasons})
    if reasons:
        calls = sum(bool(reading.throttle_reasons) for reading in readings)
        why = ", ".join(reasons)
        yield f"The card held its clocks back in {write.count(calls, 'call')} of {len(readings)} ({why})."
    foreign = sum((reading.foreign_processes or 0) > 0 for reading in readings)
    if foreign:
        yield f"Other processes computed on the card in {write.count(foreign, 'call')} of {len(readings)}."
