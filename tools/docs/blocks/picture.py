"""The one picture to begin with: the first chart of speed, times and factors of every preset."""

from __future__ import annotations

from kontext_fast.report.text.markup import Markdown, paragraphs, picture
from tools.docs.doc_context import NOTHING, DocContext


def render(context: DocContext) -> Markdown:
    """The picture where a card was measured."""
    charts = context.charts if context.headline else ()
    chart = next((chart for chart in charts if chart.path and chart.section == "speed"), None)
    return paragraphs([picture(chart.alt, context.link(chart.path)) if chart and chart.path else NOTHING])
