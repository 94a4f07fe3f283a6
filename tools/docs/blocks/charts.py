"""Every chart that was drawn, with what it shows, how to read it and what it comes to."""

from __future__ import annotations

from kontext_fast.report.charting import Chart
from kontext_fast.report.output.documents import markdown as escaped
from kontext_fast.report.text.markdown import paragraphs
from tools.docs.doc_context import DocContext


def render(site: DocContext) -> str:
    """Charts that were not drawn are named at the end, with the reason."""
    charts = site.story.charts if site.story else ()
    missing = [f"{escaped(chart.title)}: {escaped(chart.takeaway)}" for chart in charts if chart.path is None]
    drawn = [_drawn(chart, site) for chart in charts if chart.path is not None]
    return paragraphs([*drawn, *missing]) or "There are no records of a benchmark yet, so there is no chart."


def _drawn(chart: Chart, site: DocContext) -> str:
    assert chart.path is not None
    page = chart.path.with_suffix(".html")
    return paragraphs(
        [
            f"### {escaped(chart.title)}",
            f"![{escaped(chart.alt)}]({site.link(chart.path)})",
            f"To explore it, open [{page.name}]({site.link(page)})." if page.is_file() else None,
            f"How to read it: {escaped(chart.how_to_read)}",
            f"Key takeaway: {escaped(chart.takeaway)}",
        ]
    )
