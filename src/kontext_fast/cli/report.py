"""`kontext report`: charts, raw samples and a page from stored records; runs nothing."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from kontext_fast.cli.options import Json
from kontext_fast.cli.progress import progress_bar


def report(
    records: Annotated[
        Path, typer.Argument(metavar="RECORDS", help="A folder that a bench wrote, or a JSON file of records in it.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder of the report. [default: RECORDS]", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Render charts and a page from records."""
    from rich.console import Console

    from kontext_fast.report.publish import publish
    from kontext_fast.report.terminal import print_headline

    with progress_bar() as bar:
        bar.begin("writing the report")
        written = publish(records, out)
    print_headline(written.result, Console(highlight=False))
    if json:
        charts = [str(chart.path) for chart in written.charts if chart.path]
        print(json_format.dumps({"page": str(written.page), "charts": charts}))
    else:
        print(f"The page is {written.page}.")


command = report
