"""The one picture to begin with: the first chart of speed, times and factors of every preset."""

from __future__ import annotations

from kontext_fast.report.text.markup import escape_markdown as escape
from tools.docs.doc_context import NOTHING, DocContext


def render(context: DocContext) -> str:
    """The picture where a card was measured."""
    charts = context.charts if context.headline else ()
    chart = next((chart for chart in charts if chart.path and chart.section == "speed"), None)
    return f"![{escape(chart.alt)}]({context.link(chart.path)})" if chart and chart.path else NOTHING
