"""`kontext cost`: what stored times cost, what a preset saves, and when it pays; runs nothing."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from kontext_fast.cli import options
from kontext_fast.cli.command_class import Group
from kontext_fast.cli.output import print_json
from kontext_fast.cost import Billing
from kontext_fast.errors import InvalidInput

GROUP = Group.DECIDE


def command(
    records: options.RecordsOrSeconds = None,
    seconds: Annotated[
        float | None, typer.Option(help="Instead of RECORDS: seconds a call takes now.", show_default=False)
    ] = None,
    against: Annotated[
        float | None, typer.Option(help="With --seconds: seconds it would take.", show_default=False)
    ] = None,
    images_per_day: options.ImagesPerDay = 10_000,
    billing: options.BillingModel = "by-use",
    price: options.Price = None,
    prices: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own [[price]] rows in TOML.", show_default=False)
    ] = None,
    peak_share: options.PeakShare = 1 / 24,
    cold_starts: Annotated[float, typer.Option(help="Cold starts a day, paid by use.")] = 1,
    load_seconds: Annotated[
        float | None,
        typer.Option(
            min=0, help="What loading takes at a cold start. [default: as measured; 0 for random]", show_default=False
        ),
    ] = None,
    development_usd: options.DevelopmentUsd = None,
    upkeep_usd: options.UpkeepUsd = 0,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one line per preset here.", show_default=False)
    ] = None,
    verbose: options.Verbose = False,
    json: options.Json = False,
) -> None:
    """What measured times cost, and what a preset saves."""
    from rich.console import Console

    from kontext_fast.analysis.benchmark import analyze_benchmark
    from kontext_fast.cost.analysis import Question, group_cost
    from kontext_fast.cost.billing import Demand
    from kontext_fast.cost.export import as_csv, as_json
    from kontext_fast.cost.prices import load_prices
    from kontext_fast.records.merge import load_all
    from kontext_fast.records.store import write_atomically
    from kontext_fast.report.output.terminal import print_cost

    if seconds is not None or against is not None:
        _print_savings(seconds, against, records, price, images_per_day, billing, peak_share, json)
        return
    if not records:
        raise InvalidInput(
            "There is nothing to price: name RECORDS that `kontext bench` wrote, or give --seconds and --against."
        )
    question = Question(
        demand=Demand(images_per_day=images_per_day, peak_share=peak_share, cold_starts_per_day=cold_starts),
        today=date.today(),
        billing=billing,
        price=price,
        load_s=load_seconds,
        development_usd=development_usd,
        upkeep_usd_per_month=upkeep_usd,
    )
    table = load_prices(prices)
    groups = analyze_benchmark(load_all(records))
    costs = [group_cost(group, table, question) for group in groups]
    if csv is not None:
        try:
            write_atomically(csv, as_csv(costs).encode())
        except OSError as error:
            raise InvalidInput(f"{csv} cannot be written ({error.strerror}): choose another file.") from error
    console = Console(highlight=False)
    for cost in costs:
        print_cost(cost, console, verbose=verbose)
    for note in table.licence_notes():
        console.print(note, markup=False)
    if json:
        print_json(as_json(costs, table, question))


def _print_savings(
    seconds: float | None,
    against: float | None,
    records: list[Path] | None,
    price: str | None,
    images_per_day: float,
    billing: Billing,
    peak_share: float,
    json: bool,
) -> None:
    """Two times that the user names, by the same billing as measured ones."""
    from kontext_fast.cost.payback import savings

    if seconds is None or against is None or price is None:
        raise InvalidInput("Two times are priced with --seconds, --against and --price together: give all three.")
    if records:
        raise InvalidInput("RECORDS have times of their own: leave out --seconds and --against, or RECORDS.")
    saved = savings(
        seconds, against, price=price, images_per_day=images_per_day, billing=billing, peak_share=peak_share
    )
    print(saved)
    if json:
        print_json(
            {
                "usd_per_month_saved": saved.per_month.value,
                "fraction_saved": saved.fraction,
                "usd_per_image": [saved.before.per_image.value, saved.after.per_image.value],
                "gpus": [saved.before.gpus, saved.after.gpus],
                "basis": str(saved.after.basis),
            }
        )
