"""What the page says first: the finding as a headline, and four numbers of the preset that it names."""

from __future__ import annotations

from dataclasses import dataclass

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.rows import Row
from kontext_fast.cost.analysis import Question
from kontext_fast.records.schema import BASELINE
from kontext_fast.report.model import GroupReport, Report
from kontext_fast.report.quality import PresetQuality
from kontext_fast.report.text import costs


@dataclass(frozen=True)
class Takeaway:
    name: str
    value: str
    detail: str
    section: str
    """Of the page, where the number is explained."""
    run_ids: tuple[str, ...]


def title(lead: GroupReport | None) -> str:
    """The finding as a headline, as far as it may be claimed."""
    if lead is None or lead.best is None or lead.best.factor is None:
        return "How fast, and what it cost the image"
    machine = lead.group.machine or "an unknown machine"
    return f"{lead.best.preset}: {fmt.factor(lead.best.factor)} as fast on {machine}"


def takeaways(report: Report) -> tuple[Takeaway, ...]:
    """Of the fastest preset that may be called faster than baseline; none where there is no such preset."""
    lead = report.lead
    if lead is None or lead.best is None or lead.best.time is None:
        return ()
    best, baseline = lead.best, lead.group.row(BASELINE)
    baseline = baseline if baseline and baseline.time else None
    run_ids = (*lead.group.run_ids(BASELINE), *lead.group.run_ids(best.preset))
    return (
        _speed(best, baseline, run_ids),
        _quality(lead.quality[best.preset], run_ids),
        _memory(best, baseline, run_ids),
        _saved(lead, best.preset, report.question, run_ids),
    )


def _speed(best: Row, baseline: Row | None, run_ids: tuple[str, ...]) -> Takeaway:
    assert best.factor is not None
    assert best.time is not None
    interval = fmt.factor_range(best.factor)
    times = fmt.seconds_estimate(best.time.mean)
    if baseline is not None and baseline.time is not None:
        times = f"{fmt.seconds_estimate(baseline.time.mean)} down to {times} a call"
    value = f"{fmt.factor(best.factor)} as fast"
    return Takeaway("Speed", value, f"{times}; 95 % interval {interval}", "results", run_ids)


def _quality(quality: PresetQuality, run_ids: tuple[str, ...]) -> Takeaway:
    """A verdict has records of its own, which are not in this report."""
    verdict = quality.verdict
    detail = f"{quality.basis}: {verdict.reason}" if verdict else quality.basis
    return Takeaway("Quality", quality.value, detail, "quality", () if verdict else run_ids)


def _memory(best: Row, baseline: Row | None, run_ids: tuple[str, ...]) -> Takeaway:
    details = [fmt.peak_memory_kind(best.memory)]
    if baseline is not None:
        details.append(f"baseline {fmt.peak_memory(baseline.memory)}")
    detail = "; ".join(filter(None, details))
    return Takeaway("Peak memory", fmt.peak_memory(best.memory), detail, "memory", run_ids)


def _saved(lead: GroupReport, preset: str, question: Question, run_ids: tuple[str, ...]) -> Takeaway:
    saved = costs.saved(lead.cost, preset)
    value = saved if isinstance(saved, str) else fmt.usd(saved.value)
    return Takeaway("Saved a month", value, costs.terms(lead.cost, question), "cost", run_ids)
