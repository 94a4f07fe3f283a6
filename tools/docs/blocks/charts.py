"""Every chart that was drawn, with what it shows, how to read it and what it comes to."""

from __future__ import annotations

from kontext_fast.report.charting import Chart
from kontext_fast.report.text.markup import Markdown, link, paragraphs, picture
from tools.docs.doc_context import DocContext


def render(context: DocContext) -> Markdown:
    """Charts that were not drawn are named at the end, with the reason."""
    missing = [f"{chart.title}: {chart.takeaway}" for chart in context.charts if chart.path is None]
    drawn = [_drawn(chart, context) for chart in context.charts if chart.path is not None]
    return paragraphs([*drawn, *missing] or ["There are no records of a benchmark yet, so there is no chart."])


def _drawn(chart: Chart, context: DocContext) -> Markdown:
    assert chart.path is not None
    page = chart.path.with_suffix(".html") if chart.html else None
    return paragraphs(
        [
            Markdown("### {}").format(chart.title),
            picture(chart.alt, context.link(chart.path)),
            Markdown("To explore it, open {}.").format(link(page.name, context.link(page))) if page else None,
            f"How to read it: {chart.how_to_read}",
            f"Key takeaway: {chart.takeaway}",
        ]
    )
