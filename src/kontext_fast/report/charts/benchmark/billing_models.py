"""What a month costs by use, always on, reserved and bought from an API, as the volume grows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kontext_fast.analysis import format as fmt
from kontext_fast.cost.billing import RHO_MAX, Demand, Tariff, cost
from kontext_fast.cost.crossover import hosting_instead_of_api
from kontext_fast.cost.headline_comparison import HeadlineComparison
from kontext_fast.cost.prices import Price
from kontext_fast.cost.work import Work
from kontext_fast.report.charting import Chart, not_drawn
from kontext_fast.report.model import Report
from kontext_fast.report.plots import style
from kontext_fast.report.plots.money import Caption, VolumeLine, volume_picture

SECTION = "cost"
FILE = "cost/billing_models.png"
TITLE = "What a month costs under each billing model, by volume"
HOW = (
    "Dollars a month against images a day, both axes logarithmic. By use grows with every image, a fleet in whole "
    "GPUs; an API is bought image by image. Where lines cross, the cheaper way changes."
)
LEAST, MOST, POINTS = 100, 100_000, 721
COLORS = (style.BLUE, style.VERMILION, style.GREEN)


@dataclass(frozen=True)
class Plotted:
    shown: HeadlineComparison
    tariffs: tuple[Tariff, ...]
    api: Price | None
    """The API that charges least."""
    panels: tuple[tuple[str, tuple[VolumeLine, ...]], ...]
    """One per preset."""


def plotted(report: Report) -> Plotted | str:
    """The data of the picture, or in a few words why there is none."""
    shown = report.comparison
    if isinstance(shown, str):
        return shown
    tariffs = [shown.tariff("by-use"), shown.tariff("always-on")]
    if reserved := shown.table.typical(shown.card, "reserved"):
        tariffs.append(shown.tariff("reserved", reserved))
    api = next(iter(shown.table.apis()), None)
    panels = tuple(
        (name, _lines(shown, work, tariffs, api))
        for name, work in zip(("baseline", shown.other.preset), shown.works, strict=True)
    )
    return Plotted(shown, tuple(tariffs), api, panels)


def draw(report: Report) -> Chart:
    data = plotted(report)
    if isinstance(data, str):
        return not_drawn(TITLE, HOW, data)
    shown = data.shown
    prices = [*(tariff.price for tariff in data.tariffs), *filter(None, [data.api])]
    priced = "; ".join(dict.fromkeys(price.dated(shown.today) for price in prices))
    foot = (
        f"Prices: {priced}.\nEven load, at most {100 * RHO_MAX:.0f} % busy at the peak, 365/12 days "
        f"a month, no cold starts, no licence of the weights. Time: {shown.runs}."
    )
    caption = Caption(f"Ways to pay on {shown.card}", shown.subtitle, foot, shown.stamp, shown.note)
    takeaway = _takeaway(data)
    picture = volume_picture(caption, data.panels, "dollars a month")
    return Chart(TITLE, HOW, takeaway, alt=takeaway, picture=picture, source=shown.subtitle)


def _lines(shown: HeadlineComparison, work: Work, tariffs: list[Tariff], api: Price | None) -> tuple[VolumeLine, ...]:
    volumes = [float(volume) for volume in np.geomspace(LEAST, MOST, POINTS)]
    lines = []
    for tariff, color in zip(tariffs, COLORS, strict=False):
        points = tuple((v, _month(shown, work, tariff, v)) for v in volumes)
        name = f"{tariff.billing}, {fmt.usd_rate(tariff.price.usd_per_gpu_hour)} per GPU-hour"
        lines.append(VolumeLine(name, points, color, stepped=tariff.billing != "by-use"))
    if api is not None and api.usd_per_image is not None:
        days = Demand(images_per_day=1).days_per_month
        bought = tuple((v, v * days * api.usd_per_image) for v in volumes)
        lines.append(
            VolumeLine(f"{api.provider} API, ${api.usd_per_image:g} an image", bought, style.MUTED, dashed=True)
        )
    return tuple(lines)


def _month(shown: HeadlineComparison, work: Work, tariff: Tariff, volume: float) -> float:
    return cost(work, Demand(images_per_day=volume), tariff, today=shown.today).per_month.value


def _takeaway(data: Plotted) -> str:
    if data.api is None:
        return f"{data.shown.other.row.preset} on {data.shown.card} under {len(data.tariffs)} billing models."
    _, work = data.shown.works
    volume = hosting_instead_of_api(work, Demand(images_per_day=1), data.tariffs[1], data.api).images_per_day
    return (
        f"An always-on {data.shown.card} with {data.shown.other.row.preset} costs less than {data.api.id} from "
        f"{fmt.volume(volume)} on, without the licence of the weights.".replace("from never on", "at no volume")
    )
