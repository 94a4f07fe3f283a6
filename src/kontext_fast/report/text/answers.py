"""What a report says first: a headline, and the four questions that bring a reader, each with a short answer."""

from __future__ import annotations

from dataclasses import dataclass

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.groups import Plan
from kontext_fast.analysis.rows import Row
from kontext_fast.analysis.tiers import is_eight_bit, our_rows
from kontext_fast.cost.analysis import Question
from kontext_fast.records.names import is_peer, short_machine
from kontext_fast.records.schema import BASELINE
from kontext_fast.report.model import GroupReport, Report
from kontext_fast.report.quality import PresetQuality
from kontext_fast.report.text import costs
from kontext_fast.stats.claims import speed_claim

UNPROVEN = "How fast, and what it cost the image"


@dataclass(frozen=True)
class Answer:
    question: str
    value: str
    detail: str
    section: str
    """Of the page, where the number is explained."""
    is_code: bool = False


@dataclass(frozen=True)
class Choice:
    """A preset that a reader may choose."""

    row: Row
    work: str
    """`9 of 28 steps, 8 bit`."""
    quality: PresetQuality


def headline(lead: GroupReport | None) -> str:
    """The finding as a headline, as far as it may be claimed."""
    if lead is None or lead.best is None or lead.best.time is None:
        return UNPROVEN
    baseline = lead.group.row(BASELINE)
    machine = short_machine(lead.group.machine or "an unknown machine")
    what = "An edit" if lead.group.workload and lead.group.workload.mode == "edit" else "An image"
    fast = fmt.seconds(lead.best.time.mean.value)
    if baseline is None or baseline.time is None:
        return f"{what} in {fast} on {machine}"
    return f"{what} in {fast} instead of {fmt.seconds(baseline.time.mean.value)} on {machine}"


def subtitle(report: Report) -> str:
    """The workload, the machine, the day and the version."""
    lead = report.lead
    if lead is None:
        return ""
    checkpoint = lead.group.checkpoint
    weights = "full architecture, random weights" if checkpoint and checkpoint.random_weights else None
    parts = [
        lead.title,
        lead.group.machine,
        weights or (f"checkpoint {checkpoint.name}" if checkpoint else None),
        fmt.date_range(run.record.created_at for run in lead.group.runs) if lead.group.runs else None,
        f"kontext-fast {report.result.kontext_fast_version}",
    ]
    return " / ".join(part for part in parts if part)


def answers(report: Report) -> tuple[Answer, ...]:
    """The answers for the fastest preset that may be called faster than baseline; none where no preset may."""
    lead = report.lead
    if lead is None or lead.best is None or lead.best.time is None:
        return ()
    return (
        _how_fast(lead, lead.best),
        _as_good(lead, lead.best.preset),
        _saves(lead, lead.best.preset, report.question),
        _use(lead.best),
    )


def _how_fast(lead: GroupReport, best: Row) -> Answer:
    assert best.factor is not None
    interval = f"95 % interval {fmt.factor_range(best.factor)}" if best.factor.interval else fmt.NO_INTERVAL
    words = f"{best.preset}, {interval}."
    whole = fastest_with_all_steps(lead)
    if whole is not None and whole.preset != best.preset and whole.factor is not None:
        words += f" With every step computed {fmt.factor(whole.factor)} ({whole.preset})."
    return Answer("How fast?", f"{fmt.factor(best.factor)} as fast", words, "results")


def fastest_with_all_steps(lead: GroupReport) -> Row | None:
    """The fastest of our presets that compute every step, of those that may be called faster than baseline."""
    steps = lead.group.workload.steps if lead.group.workload else 0
    rows = [
        row
        for row in our_rows(lead.group)
        if row.factor
        and speed_claim(row.factor, lead.group.smallest_claim or 0.0) == "faster"
        and row.computed_steps
        and row.computed_steps.mean == steps
    ]
    return rows[-1] if rows else None


def _as_good(lead: GroupReport, preset: str) -> Answer:
    """A verdict holds for the weights that it was found on, which need not be those that were timed."""
    question, quality = "Are the images as good?", lead.quality[preset]
    verdict, timed = quality.verdict, lead.group.checkpoint
    if verdict is None:
        detail = f"{quality.basis[0].upper()}{quality.basis[1:]}."
        return Answer(question, quality.value, f"{detail} kontext verify measures yours.", "quality")
    if timed is not None and timed.name == verdict.checkpoint:
        return Answer(
            question, verdict.name, f"{verdict.where[0].upper()}{verdict.where[1:]}: {verdict.reason}", "quality"
        )
    weights = "FLUX weights" if timed is not None and timed.random_weights else "these weights"
    return Answer(
        question,
        verdict.words,
        f"{preset}: {verdict.name}, {verdict.items} edits. On {weights}: not measured; kontext verify measures yours.",
        "quality",
    )


def _saves(lead: GroupReport, preset: str, question: Question) -> Answer:
    saved = costs.saved(lead.cost, preset)
    value = saved if isinstance(saved, str) else f"{fmt.usd(saved.value)} a month"
    terms = costs.terms(lead.cost, question)
    return Answer("What does it save?", value, f"{terms[0].upper()}{terms[1:]}.", "cost")


def _use(best: Row) -> Answer:
    kind, card = fmt.peak_memory_kind(best.memory), fmt.smallest_card(best.memory)
    memory = f"{fmt.peak_memory(best.memory)} of memory ({fmt.peak_memory_detail(best.memory)})" if kind else ""
    details = [part for part in (memory, card) if part]
    start = best.apply.value + best.first_call.value if best.apply and best.first_call else None
    if start is not None:
        details.append(f"first image {fmt.seconds(start)} after the weights are loaded")
    words = "; ".join(details)
    value = f'accelerate(pipe, "{best.preset}")' if not is_peer(best.preset) else best.preset
    return Answer("How do I use it?", value, f"{words[:1].upper()}{words[1:]}." if words else "", "use", is_code=True)


def choices(report: Report) -> tuple[Choice, ...]:
    """Our presets that were measured, slow to fast, without what cannot be compared."""
    lead = report.lead
    if lead is None:
        return ()
    return tuple(
        Choice(row, _work(row, lead.group.plans.get(row.preset, ())), lead.quality[row.preset])
        for row in our_rows(lead.group)
    )


def _work(row: Row, plan: Plan) -> str:
    steps = fmt.computed_steps(row.computed_steps) if row.computed_steps else "all"
    return f"{steps} steps, {'8 bit' if is_eight_bit(plan) else '16 bit'}"
