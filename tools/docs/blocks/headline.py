"""The headline: what one card's records say of every preset and peer at the usual workload."""

from __future__ import annotations

from collections.abc import Sequence

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.rows import Row
from kontext_fast.records.names import parse_ablation
from kontext_fast.report.model import GroupReport, Report
from kontext_fast.report.text import costs
from kontext_fast.report.text.markup import Markdown, bullets, code_span, paragraphs, table
from kontext_fast.report.text.phrases import of_other_plans, on_cards, provenance
from tools.docs.doc_context import NOTHING, DocContext, unmeasured_peers

HEADER = ("preset", "time per call", "as fast as baseline", "steps", "quality", "peak memory", "saved a month", "n")


def render(context: DocContext) -> Markdown:
    """Finding, table, footnotes, failures and what the numbers hold for."""
    group, report = context.headline, context.report
    if group is None or report is None:
        return paragraphs([NOTHING])
    # The parts of a preset have a chart of their own.
    rows = [row for row in group.rows if parse_ablation(row.preset) is None]
    measured = [row for row in rows if row.time is not None]
    labels = list(dict.fromkeys(label for row in measured for label in row.labels))
    failed = [row for row in rows if row.time is None]
    return paragraphs(
        [
            Markdown("**{}**").format(group.finding),
            table(HEADER, (_cells(row, group, labels) for row in measured)),
            bullets(Markdown("<sup>{}</sup> {}").format(number, label) for number, label in enumerate(labels, 1)),
            _not_timed(failed, unmeasured_peers(group)),
            _not_counted(measured, group),
            f"{group.title}: {provenance([group.group])}. "
            "Ranges in brackets are 95 % intervals over n processes or cards.",
            group.caution,
            group.checks[0] if group.checks else None,
            " ".join(on_cards(group.group)) or None,
            _money(group, report),
        ]
    )


def _cells(row: Row, group: GroupReport, labels: Sequence[str]) -> tuple[str, ...]:
    assert row.time is not None
    numbers = ", ".join(str(labels.index(label) + 1) for label in row.labels)
    name, saved = code_span(row.preset), costs.saved(group.cost, row.preset)
    return (
        Markdown("{} <sup>{}</sup>").format(name, numbers) if numbers else name,
        fmt.seconds_of_runs_with_interval(row.time),
        fmt.factor_with_interval(row.factor) if row.factor else row.factor_note or "",
        fmt.computed_steps(row.computed_steps) if row.computed_steps else fmt.NOT_MEASURED,
        str(group.quality[row.preset]),
        fmt.peak_memory(row.memory),
        saved if isinstance(saved, str) else fmt.usd_with_interval(saved),
        fmt.n_of(row.time.mean).removeprefix("n="),
    )


def _not_timed(rows: Sequence[Row], unmeasured: Sequence[str]) -> Markdown | None:
    if not rows and not unmeasured:
        return None
    reasons = [Markdown("{}: {}. {}").format(code_span(row.preset), row.status, row.reason or "") for row in rows]
    reasons += [Markdown("{}: {}.").format(code_span(peer), fmt.NOT_MEASURED) for peer in unmeasured]
    return paragraphs(["Not timed:", bullets(reasons)])


def _not_counted(rows: Sequence[Row], group: GroupReport) -> Markdown | None:
    """Runs of presets that have a time which are not part of it, such as a run that hung before another one ended."""
    ended = [
        Markdown("{}: {}, {}. {}").format(code_span(row.preset), fmt.count(n, "further run"), status, reason)
        for row in rows
        for (status, reason), n in row.failures_alike.items()
    ]
    sentences = [*ended, *of_other_plans(group.group)]
    return paragraphs(["Not part of the times above:", bullets(sentences)]) if sentences else None


def _money(group: GroupReport, report: Report) -> str:
    source = f" ({group.cost.price.source})" if group.cost.price else ""
    return f"Money: {costs.terms(group.cost, report.question)}{source}."
