"""What a page says first: its title, and one number each for speed, quality, memory and money."""

from __future__ import annotations

from dataclasses import dataclass

from kontext_fast.cost import money
from kontext_fast.cost.analysis import Question
from kontext_fast.records.schema import BASELINE
from kontext_fast.report import format as write
from kontext_fast.report.headline import Row
from kontext_fast.report.sections import Section
from kontext_fast.report.verified import Verdicts, Verified


@dataclass(frozen=True)
class Takeaway:
    name: str
    value: str
    detail: str
    section: str
    """Of the page, where the number is explained."""
    run_ids: tuple[str, ...]


def title(lead: Section | None) -> str:
    """The finding as a headline, as far as it may be claimed."""
    if lead is None or lead.best is None or lead.best.factor is None:
        return "How fast, and what it cost the image"
    machine = lead.group.machine or "an unknown machine"
    return f"{lead.best.preset}: {write.factor(lead.best.factor)} as fast on {machine}"


def takeaways(lead: Section | None, question: Question, verdicts: Verdicts) -> tuple[Takeaway, ...]:
    """Of the fastest preset that may be called faster than baseline; none where there is no such preset."""
    if lead is None or lead.best is None or lead.best.time is None:
        return ()
    best, baseline = lead.best, next((row for row in lead.rows if row.preset == BASELINE), None)
    run_ids = (*lead.run_ids(BASELINE), *lead.run_ids(best.preset))
    return (
        _speed(best, baseline, run_ids),
        _quality(lead, best, baseline, run_ids, verdicts.get(best.preset)),
        _memory(best, baseline, run_ids),
        _saved(lead, best, question, run_ids),
    )


def _speed(best: Row, baseline: Row | None, run_ids: tuple[str, ...]) -> Takeaway:
    assert best.factor is not None
    assert best.time is not None
    interval = write.factor_range(best.factor)
    times = write.seconds_estimate(best.time.mean)
    if baseline is not None and baseline.time is not None:
        times = f"{write.seconds_estimate(baseline.time.mean)} down to {times} a call"
    return Takeaway(
        "Speed", f"{write.factor(best.factor)} as fast", f"{times}; 95 % interval {interval}", "results", run_ids
    )


def _quality(
    lead: Section, best: Row, baseline: Row | None, run_ids: tuple[str, ...], verified: Verified | None
) -> Takeaway:
    if verified is not None:
        return Takeaway("Quality", verified.name, f"{verified.where}: {verified.reason}", "quality", ())
    if best.accepted is None:
        random = lead.group.checkpoint is not None and lead.group.checkpoint.kind == "random"
        why = "the weights are random, so there is no image to judge" if random else "no judge has seen these images"
        return Takeaway("Quality", write.NOT_MEASURED, why, "quality", run_ids)
    detail = f"of {write.count(best.accepted.n, 'item')}, by the judge"
    if baseline is not None and baseline.accepted is not None:
        detail += f"; baseline {write.percent(baseline.accepted.value)}"
    return Takeaway("Quality", f"{write.percent(best.accepted.value)} accepted", detail, "quality", run_ids)


def _memory(best: Row, baseline: Row | None, run_ids: tuple[str, ...]) -> Takeaway:
    details = [write.peak_memory_kind(best.memory)]
    if baseline is not None and baseline.time is not None:
        details.append(f"baseline {write.peak_memory(baseline.memory)}")
    detail = "; ".join(filter(None, details))
    return Takeaway("Peak memory", write.peak_memory(best.memory), detail, "memory", run_ids)


def _saved(lead: Section, best: Row, question: Question, run_ids: tuple[str, ...]) -> Takeaway:
    cost = lead.cost_of(best.preset)
    if cost is None or cost.savings_per_month is None or cost.cost is None:
        return Takeaway("Saved a month", "no price", lead.cost.refusal or "not priced", "cost", run_ids)
    basis = cost.cost.basis
    detail = (
        f"{question.demand.images_per_day:,.0f} images a day, billed {basis.billing} at "
        f"{basis.price.dated(question.today)}, {money.rate(basis.price.usd_per_gpu_hour)} per GPU-hour"
    )
    return Takeaway("Saved a month", money.usd(cost.savings_per_month.value), detail, "cost", run_ids)
