"""The forecast of `kontext capacity` against a server, in the form of `benchmarks/capacity_check.py --out FILE`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kontext_fast.analysis import format as fmt
from kontext_fast.report.text.markup import Markdown, bullets, paragraphs, table
from tools.docs.doc_context import DocContext

HEADER = ("load asked for", "load by the measured calls", "requests", "forecast p95", "measured p95", "it holds")


def render(context: DocContext) -> Markdown:
    """A table for each file below the folder of results."""
    reports = [_of_report(*stored) for stored in context.stored("capacity.json")]
    return paragraphs(reports or ["Not measured yet."])


def _of_report(link: Markdown, report: dict[str, Any]) -> Markdown:
    where = Markdown("`tiny`, {} step, on a CPU with {}, one for the server and one for the requests: {}.").format(
        report["steps"], report["machine"], link
    )
    return paragraphs([table(HEADER, _rows(report)), bullets([where])])


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for load in report["loads"]:
        p95, low, high = map(fmt.seconds, load["measured_p95_s"])
        forecast = load["forecast_p95_s"]
        yield (
            *(
                f"{100 * load['asked']:.0f} %",
                f"{100 * load['share']:.0f} %",
                f"{load['served']} of {load['requests']}",
            ),
            "none: more than the server can do" if forecast is None else fmt.seconds(forecast),
            *(f"{p95} ({low} to {high})", "yes" if load["holds"] else "no"),
        )
