"""The one picture to begin with: the first chart of speed, times and factors of every preset."""

from __future__ import annotations

from kontext_fast.report.charting import SECTIONS
from kontext_fast.report.output.documents import markdown as escaped
from tools.docs.doc_context import NOTHING, DocContext


def render(site: DocContext) -> str:
    """The picture where a card was measured."""
    charts = site.story.charts if site.story and site.card else ()
    chart = next((chart for chart in charts if chart.path and chart.section == SECTIONS[0]), None)
    return f"![{escaped(chart.alt)}]({site.link(chart.path)})" if chart and chart.path else NOTHING
