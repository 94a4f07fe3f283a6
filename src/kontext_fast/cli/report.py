"""`kontext report`: charts, raw samples and a document from stored records; runs nothing."""

from __future__ import annotations

import json as json_format
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import typer

from kontext_fast.cli.options import Json
from kontext_fast.cli.progress import progress_bar
from kontext_fast.cost import Billing


def report(
    records: Annotated[
        Path, typer.Argument(metavar="RECORDS", help="A folder that a bench wrote, or a JSON file of records in it.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder of the report. [default: RECORDS]", show_default=False)
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
    images_per_day: Annotated[float, typer.Option(help="Volume that is priced.")] = 10_000,
    billing: Annotated[Billing, typer.Option(help="How the GPUs are paid.")] = "by-use",
    price: Annotated[
        str | None,
        typer.Option(
            metavar="ID|USD",
            help="A row of the price table, or dollars per GPU-hour. [default: the card's middle price]",
            show_default=False,
        ),
    ] = None,
    development_usd: Annotated[
        float | None, typer.Option(help="What it took to get there, for the business case.", show_default=False)
    ] = None,
    upkeep_usd: Annotated[float, typer.Option(help="What it takes every month, for the business case.")] = 0,
    json: Json = False,
) -> None:
    """Render charts and a document from records."""
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
        print(json_format.dumps({audience: str(written.document), "charts": charts}))
    else:
        print(f"The {audience} is {written.document}.")


command = report
