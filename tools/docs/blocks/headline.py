"""The headline: what one card's records say of every preset and peer at the usual workload."""

from __future__ import annotations

from collections.abc import Sequence

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.rows import Row
from kontext_fast.records.names import parse_ablation
from kontext_fast.records.schema import CONTROL
from kontext_fast.report.model import Report
from kontext_fast.report.output.documents import markdown as escaped
from kontext_fast.report.sections import Section
from kontext_fast.report.text.markdown import bullets, paragraphs, table
from kontext_fast.report.text.phrases import of_other_plans, provenance
from tools.docs.doc_context import NOTHING, DocContext

HEADER = ("preset", "time per call", "as fast as baseline", "steps", "quality", "peak memory", "saved a month", "n")


def render(site: DocContext) -> str:
    """Finding, table, footnotes, failures and what the numbers hold for."""
    section, story = site.card, site.story
    if section is None or story is None:
        return NOTHING
    # The parts of a preset have a chart of their own.
    rows = [row for row in section.rows if parse_ablation(row.preset) is None]
    measured = [row for row in rows if row.time is not None]
    labels = list(dict.fromkeys(label for row in measured for label in row.labels))
    failed = [row for row in rows if row.time is None]
    return paragraphs(
        [
            f"**{escaped(section.finding)}**",
            table(HEADER, (_cells(row, section, labels) for row in measured)),
            bullets(f"<sup>{number}</sup> {escaped(label)}" for number, label in enumerate(labels, 1)),
            _failures(failed),
            _not_counted(measured, section),
            f"{escaped(section.title)}: {escaped(provenance([section.group]))}. In brackets are 95 % intervals over "
            "processes, of which there are n.",
            escaped(section.caution) if section.caution else None,
            escaped(section.checks[0]) if section.checks else None,
            _money(section, story),
        ]
    )


def _cells(row: Row, section: Section, labels: Sequence[str]) -> tuple[str, ...]:
    assert row.time is not None
    numbers = ", ".join(str(labels.index(label) + 1) for label in row.labels)
    steps = fmt.computed_steps(row.computed_steps) if row.computed_steps else fmt.NOT_MEASURED
    return (
        f"`{row.preset}`" + (f" <sup>{numbers}</sup>" if numbers else ""),
        f"{fmt.seconds_estimate(row.time.mean)} ({fmt.seconds_range(row.time.mean) or 'no interval'})",
        _factor(row),
        steps,
        _quality(row),
        fmt.peak_memory(row.memory),
        _saved(row, section),
        str(row.time.mean.n),
    )


def _factor(row: Row) -> str:
    if row.factor is None:
        return row.factor_note or ""
    return f"{fmt.factor(row.factor)} ({fmt.factor_range(row.factor) or 'no interval'})"


def _quality(row: Row) -> str:
    if row.accepted is None:
        return fmt.NOT_MEASURED
    return f"{fmt.percent(row.accepted.value)} of {fmt.count(row.accepted.n, 'item')} accepted"


def _saved(row: Row, section: Section) -> str:
    if row.preset == CONTROL:
        return ""
    if section.cost.refusal:
        return "no price"
    cost = section.cost_of(row.preset)
    if cost is None or cost.savings_per_month is None:
        return "reference" if row.factor_note == "reference" else "not priced"
    saved = cost.savings_per_month
    return f"{fmt.usd(saved.value)} ({fmt.usd_range(saved) or 'no interval'})"


def _failures(rows: Sequence[Row]) -> str | None:
    if not rows:
        return None
    return paragraphs(
        ["Without a time:", bullets(f"`{row.preset}`: {row.status}. {escaped(row.reason or '')}" for row in rows)]
    )


def _not_counted(rows: Sequence[Row], section: Section) -> str | None:
    """Runs of presets that have a time, which are not in it: what hung must not be forgotten once it did not."""
    ended = [
        f"`{row.preset}`: {fmt.count(n, 'further run')}, {status}. {escaped(reason)}"
        for row in rows
        for (status, reason), n in row.failures_alike.items()
    ]
    sentences = [*ended, *map(escaped, of_other_plans(section.group))]
    return paragraphs(["Beside the times above:", bullets(sentences)]) if sentences else None


def _money(section: Section, story: Report) -> str:
    price = section.cost.price
    if price is None:
        return f"Money: {escaped(section.cost.refusal or 'not priced')}."
    question = story.costs.question
    return (
        f"Money: {section.cost.demand.images_per_day:,.0f} images a day, billed {question.billing} at "
        f"{escaped(price.dated(question.today))}, ${price.usd_per_gpu_hour:g} per GPU-hour ({escaped(price.source)})."
    )
