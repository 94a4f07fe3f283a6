"""A comparison as Markdown for a pull request, and as plain data for a program."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.comparison import REGRESSIONS, Change, Comparison
from kontext_fast.records.schema import ResultFile
from kontext_fast.report.environment import environment_facts
from kontext_fast.report.text.markup import Markdown, bullets, paragraphs, table
from kontext_fast.stats.intervals import Estimate

_HEADER = ("workload", "preset", "A", "B", "change in time", "95 % interval", "found with 80 % power", "outcome")

_OF_THE_OCCASION = ("clock_sm_mhz", "clock_memory_mhz", "temperature_c", "uuid_sha256", "host_sha256")
"""Facts that differ from one moment, or one card, to the next."""


def markdown(comparison: Comparison, before: ResultFile, after: ResultFile, threshold: float) -> str:
    """The table, what it holds for, and what differed between the two benchmarks."""
    notes = [f"{change.preset} on {change.workload}: {change.note}" for change in comparison.changes if change.note]
    return paragraphs(
        [
            f"A: {_named(before)}. B: {_named(after)}.",
            table(_HEADER, map(_cells, comparison.changes)),
            f"A regression is slower by at least {100 * threshold:g} %, beyond its interval and the A/A control. "
            "Changes of presets are relative to baseline in the same rounds (*), so a slower day is none. Where the "
            "interval is too wide to rule a regression out, it cannot tell.",
            bullets([*notes, *comparison.left_out, *_differences(before, after)]),
        ]
    )


def as_data(comparison: Comparison) -> dict[str, Any]:
    """JSON values; ratios are time after over time before, times are in seconds."""
    return {
        "regressions": len(comparison.regressions),
        "changes": [
            {
                "workload": change.workload,
                "preset": change.preset,
                "before_s": change.before and asdict(change.before),
                "after_s": change.after and asdict(change.after),
                "ratio": change.ratio and asdict(change.ratio),
                "relative_to_baseline": change.relative,
                "detectable": change.detectable,
                "outcome": change.outcome,
                "note": change.note,
            }
            for change in comparison.changes
        ],
        "left_out": list(comparison.left_out),
    }


def _cells(change: Change) -> list[object]:
    ratio = change.ratio
    star = "*" if change.relative else ""
    interval = ratio.interval if ratio else None
    return [
        change.workload,
        change.preset,
        _time(change.before),
        _time(change.after),
        f"{_percent(ratio.value)}{star}" if ratio else "",
        f"{_percent(interval[0])} to {_percent(interval[1])}" if interval else "none",
        "" if change.detectable is None else f"{100 * change.detectable:.1f} %",
        Markdown("**{}**").format(change.outcome) if change.outcome in REGRESSIONS else change.outcome,
    ]


def _time(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{fmt.seconds_estimate(estimate)} ({fmt.n_of(estimate)})"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _named(result: ResultFile) -> str:
    dates = sorted(fmt.date(record.created_at) for record in result.records)
    return f"suite {result.suite}, {dates[0] if dates else 'no runs'}, kontext-fast {result.kontext_fast_version}"


def _differences(before: ResultFile, after: ResultFile) -> Iterator[str]:
    old, new = ({fact.name: fact.value for fact in environment_facts(result.records)} for result in (before, after))
    for name in dict.fromkeys([*old, *new]):
        if name.rpartition(".")[2] not in _OF_THE_OCCASION and old.get(name) != new.get(name):
            yield f"{name}: {old.get(name, 'absent')} in A, {new.get(name, 'absent')} in B"
