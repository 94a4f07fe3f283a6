"""Documents for a blog, a paper and a business case, rendered from the same report as the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from kontext_fast.report import templates
from kontext_fast.report.business import business_case
from kontext_fast.report.charting import Chart
from kontext_fast.report.model import Report
from kontext_fast.report.output.page import beside_reports

Audience = Literal["page", "blog", "paper", "business"]

DOCUMENTS: Final[dict[Audience, str]] = {
    "page": "index.html",
    "blog": "blog.md",
    "paper": "paper.tex",
    "business": "business.md",
}


def render(report: Report, charts: Sequence[Chart], audience: Audience) -> str:
    """The text of any document but the page."""
    return templates.render(
        f"{DOCUMENTS[audience]}.j2",
        report=report,
        lead=report.lead,
        charts=charts,
        hero=hero(charts),
        case=business_case(report) if audience == "business" else None,
        beside=beside_reports,
    )


def hero(charts: Sequence[Chart]) -> Chart | None:
    """The summary of what is gained where there is one, else the first picture; None where none was drawn."""
    drawn = [chart for chart in charts if chart.path is not None]
    summaries = [chart for chart in drawn if chart.path and chart.path.name.endswith("_summary.png")]
    return next(iter(summaries or drawn), None)
