"""`kontext report`: charts, raw samples and a document from stored records; runs nothing."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import typer

from kontext_fast.cli import options
from kontext_fast.cli.command_class import Group
from kontext_fast.cli.output import print_json, progress_bar

GROUP = Group.DECIDE


def command(
    records: options.SeveralRecords,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="Folder of the report; of several RECORDS it is needed. [default: RECORDS]",
            show_default=False,
        ),
    ] = None,
    audience: Annotated[
        Literal["page", "blog", "paper", "business"],
        typer.Option("--for", help="An interactive page, a post in Markdown, LaTeX, or a business case."),
    ] = "page",
    verification: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A folder that a verify wrote: its verdicts stand beside the times.", show_default=False
        ),
    ] = None,
    images_per_day: options.ImagesPerDay = 10_000,
    billing: options.BillingModel = "by-use",
    price: options.Price = None,
    development_usd: options.DevelopmentUsd = None,
    upkeep_usd: options.UpkeepUsd = 0,
    json: options.Json = False,
) -> None:
    """Charts and a document from records."""
    from rich.console import Console

    from kontext_fast.cost.analysis import Question
    from kontext_fast.cost.billing import Demand
    from kontext_fast.report.output.publish import publish
    from kontext_fast.report.output.terminal import print_headline

    question = Question(
        demand=Demand(images_per_day=images_per_day, cold_starts_per_day=1),
        today=date.today(),
        billing=billing,
        price=price,
        development_usd=development_usd,
        upkeep_usd_per_month=upkeep_usd,
    )
    with progress_bar() as bar:
        bar.begin("writing the report")
        written = publish(records, out, audience=audience, question=question, verification=verification)
    print_headline(written.report.analysis, Console(highlight=False))
    if json:
        charts = [str(chart.path) for chart in written.charts if chart.path]
        print_json({audience: str(written.document), "charts": charts})
    else:
        print(f"The {audience} is {written.document}.")
