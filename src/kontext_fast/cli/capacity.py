"""`kontext capacity`: how many cards a day's load needs, by a queueing model over stored times; runs nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from kontext_fast.cli import options
from kontext_fast.cli.command_class import Group
from kontext_fast.cli.output import print_json

GROUP = Group.DECIDE


def command(
    records: options.SeveralRecords,
    images_per_day: Annotated[float, typer.Option(metavar="N", help="Images that are asked for in a day.")],
    deadline: Annotated[
        float, typer.Option(metavar="S", help="Seconds within which 95 % of the images are to be there.")
    ],
    card: Annotated[
        str | None,
        typer.Option(help="Card, as prices name it. [default: the one that a report leads with]", show_default=False),
    ] = None,
    peak_share: options.PeakShare = 1 / 24,
    json: options.Json = False,
) -> None:
    """How many cards a load needs, and what they cost."""
    from rich.console import Console

    from kontext_fast.analysis.benchmark import analyze_benchmark
    from kontext_fast.cost.billing import Demand
    from kontext_fast.cost.capacity import group_for_capacity, plan_capacity
    from kontext_fast.cost.prices import load_prices
    from kontext_fast.records.merge import load_all
    from kontext_fast.report.output.terminal import print_capacity

    demand = Demand(images_per_day=images_per_day, peak_share=peak_share)
    group = group_for_capacity(analyze_benchmark(load_all(records)), card)
    presets = plan_capacity(group, demand, deadline, load_prices())
    print_capacity(group, presets, demand, deadline, Console(highlight=False))
    if json:
        print_json({"machine": group.machine, "presets": [asdict(preset) for preset in presets]})
