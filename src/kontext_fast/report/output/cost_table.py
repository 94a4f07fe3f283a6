"""The cost of every preset for a terminal: one table per group, then when it pays and where other ways are cheaper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kontext_fast.analysis import format as fmt
from kontext_fast.cost.analysis import GroupCost, PresetCost
from kontext_fast.cost.billing import Cost, Demand
from kontext_fast.stats.intervals import Estimate

if TYPE_CHECKING:
    from rich.console import Console


def print_cost(group: GroupCost, console: Console) -> None:
    """Preset names and notes come from records and are never read as markup."""
    from rich.text import Text

    _print_table(group, console)
    for preset in group.presets:
        if preset.cost is None and group.refusal is None:
            console.print(Text(f"{preset.preset}: {preset.note}"))
    if group.refusal:
        console.print(Text(f"Not priced: {group.refusal}."))
    else:
        for line in (*_assumptions(group), *(line for preset in group.presets for line in _more(preset))):
            console.print(Text(line))
    console.print()


def _print_table(group: GroupCost, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    title = ", ".join(filter(None, (group.checkpoint, group.workload, f"on {group.machine or 'an unknown machine'}")))
    table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("preset", "per image", "per day", "per month", "saved/month", "GPUs"):
        table.add_column(name, overflow="fold", no_wrap=name == "preset")
    for preset in group.presets:
        table.add_row(*map(Text, _cells(preset)))
    console.print(table)


def _cells(preset: PresetCost) -> tuple[str, ...]:
    name = "\n".join((preset.preset, *(f"  {label}" for label in preset.labels)))
    priced = preset.cost
    if priced is None:
        time = preset.seconds_per_image
        return (name, fmt.seconds_estimate(time) if time else "not priced", "", "", "", "")
    saved = preset.savings_per_month
    return (
        name,
        _cell(priced.per_image),
        _cell(priced.per_day),
        _cell(priced.per_month),
        _cell(saved) if saved else "",
        _gpus(priced),
    )


def _cell(estimate: Estimate) -> str:
    interval = fmt.usd_range_short(estimate)
    return "\n".join(filter(None, (fmt.usd(estimate.value), "no interval" if interval is None else interval)))


def _gpus(priced: Cost) -> str:
    if priced.basis.billing == "by-use":
        return str(priced.gpus)
    return f"{priced.gpus}\n{fmt.percent(priced.utilization)} used"


def _assumptions(group: GroupCost) -> tuple[str, ...]:
    price, basis, demand = group.price, group.basis, group.demand
    if price is None or basis is None:
        return ()
    stale = " This price is stale: it is older than 90 days." if basis.stale else ""
    sold = f", sold {price.count} together" if price.count > 1 else ""
    spot = " It is a spot price: the machine can be taken away." if price.kind == "spot" else ""
    return (
        f"Billed {basis.billing} at {price.id}: {fmt.usd_rate(price.usd_per_gpu_hour)} per GPU-hour{sold}, "
        f"{price.day}, {price.source}.{stale}{spot}",
        f"{demand.images_per_day:,.0f} images a day, {demand.days_per_month:.2f} days a month, "
        f"{_load(demand)}{_starts(group)}; GPUs are those of the busiest hour. "
        "The second lines are 95 % intervals, from the measured time alone.",
    )


def _load(demand: Demand) -> str:
    even = abs(demand.peak_share * 24 - 1) < 1e-9
    return "spread evenly" if even else f"{fmt.percent(demand.peak_share)} of them in the busiest hour"


def _starts(group: GroupCost) -> str:
    if group.basis is None or group.basis.billing != "by-use":
        return ""
    starts = group.demand.cold_starts_per_day
    return f", {starts:g} cold {'start' if starts == 1 else 'starts'} a day"


def _more(preset: PresetCost) -> tuple[str, ...]:
    if preset.cost is None:
        return ()
    basis = preset.cost.basis
    lines = [f"{preset.preset}: {basis}"]
    if basis.billing == "by-use" and preset.cold_start_s is None:
        lines.append("  its cold start was not measured and is not in its cost")
    if preset.savings_per_month is not None:
        lines.append(f"  repays its longer start after: {fmt.images(preset.images_to_repay_start)}")
    if preset.payback is not None:
        lines.append(
            f"  pays the development back after: {fmt.months(preset.payback.months)}, "
            f"first-year return {100 * preset.payback.first_year_return:.0f} %"
        )
    for cheaper in dict.fromkeys(crossing.cheaper for crossing in preset.crossovers):
        against = ", ".join(
            f"{crossing.instead_of} from {fmt.volume(crossing.images_per_day)}"
            for crossing in preset.crossovers
            if crossing.cheaper == cheaper
        )
        lines.append(f"  {cheaper} is cheaper than {against}".replace(" from never", " never"))
    return tuple(lines)
