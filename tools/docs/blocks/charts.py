"""Every chart that was drawn, with what it shows, how to read it and what it comes to."""

from __future__ import annotations

from kontext_fast.records.names import short_machine
from kontext_fast.report.charting import Chart
from kontext_fast.report.text.markup import Markdown, link, paragraphs, picture
from tools.docs.doc_context import DocContext


def render(context: DocContext) -> Markdown:
    """Charts that were not drawn are named at the end, with the reason. Those of other machines are linked."""
    machine = context.report.machine if context.report else None
    own = [chart for chart in context.charts if chart.machine in (None, machine)]
    missing = [f"{chart.title}: {chart.takeaway}" for chart in own if chart.path is None]
    drawn = [_drawn(chart, context) for chart in own if chart.path is not None]
    return paragraphs([*drawn, *missing] or ["There are no records of a benchmark yet, so there is no chart."])


def _drawn(chart: Chart, context: DocContext) -> Markdown:
    assert chart.path is not None
    page = chart.path.with_suffix(".html") if chart.html else None
    return paragraphs(
        [
            Markdown("### {}").format(chart.title),
            picture(chart.alt, context.link(chart.path)),
            Markdown("To explore it, open {}.").format(link(page.name, context.link(page))) if page else None,
            _elsewhere(chart, context),
            f"How to read it: {chart.how_to_read}" if chart.how_to_read else None,
            f"Key takeaway: {chart.takeaway}",
        ]
    )


def _elsewhere(chart: Chart, context: DocContext) -> Markdown | None:
    """The same chart of other machines."""
    links = [
        link(short_machine(other.machine), context.link(other.path))
        for other in context.charts
        if other.module == chart.module and other.machine not in (None, chart.machine) and other.machine and other.path
    ]
    return Markdown("The same on other machines: {}.").format(Markdown(", ".join(links))) if links else None
