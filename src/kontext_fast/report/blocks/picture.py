"""The one picture to begin with: times and factors of every preset."""

from __future__ import annotations

from kontext_fast.report.charts.speedup_comparison import FILE
from kontext_fast.report.documents import markdown as escaped
from kontext_fast.report.site import NOTHING, Site


def render(site: Site) -> str:
    """The picture where a card was measured."""
    charts = site.story.charts if site.story and site.card else ()
    chart = next((chart for chart in charts if chart.path and chart.path.name == FILE.name), None)
    return f"![{escaped(chart.alt)}]({site.link(chart.path)})" if chart and chart.path else NOTHING
