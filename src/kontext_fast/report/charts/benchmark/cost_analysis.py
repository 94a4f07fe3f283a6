"""What providers charge for the same work on the left, what is saved as the volume grows on the right."""

from __future__ import annotations

from dataclasses import dataclass

from kontext_fast.analysis import format as fmt
from kontext_fast.cost import Billing
from kontext_fast.cost.billing import Demand, cost
from kontext_fast.cost.headline_comparison import HeadlineComparison
from kontext_fast.report.charting import Chart, not_drawn
from kontext_fast.report.model import Report
from kontext_fast.report.plots import style
from kontext_fast.report.plots.money import Caption, Money, ProviderPair, VolumeLine, analysis_picture
from kontext_fast.stats.intervals import Estimate

SECTION = "cost"
FILE = "cost/*_cost_analysis.png"
TITLE = "The same images at every provider of the card, and what is saved as the volume grows"
HOW = (
    "Left: dollars a month by use at every on-demand price of the card. Right: dollars saved a month, both axes "
    "logarithmic; a fleet that is always on saves in whole GPUs, and a cross is a volume at which it saves nothing."
)
IMAGES_PER_DAY = 10_000
VOLUMES = (100, 1_000, 5_000, 10_000, 50_000, 100_000)


@dataclass(frozen=True)
class Plotted:
    shown: HeadlineComparison
    pairs: tuple[ProviderPair, ...]
    lines: tuple[VolumeLine, ...]


def plotted(report: Report) -> Plotted | str:
    """The data of the picture, or in a few words why there is none."""
    shown = report.comparison
    if isinstance(shown, str):
        return shown
    demand = Demand(images_per_day=IMAGES_PER_DAY)
    pairs = []
    for price in shown.table.of_card(shown.card, "on-demand"):
        tariff = shown.tariff("by-use", price)
        slow, fast = (cost(work, demand, tariff, today=shown.today).per_month for work in shown.works)
        stale = ", stale" if price.is_stale(shown.today) else ""
        name = f"{price.provider}, {price.product}\n{fmt.usd_rate(price.usd_per_gpu_hour)} per h, {price.day}{stale}"
        short = f"{price.provider}, {fmt.usd_rate(price.usd_per_gpu_hour)}"
        pairs.append(ProviderPair(name, _money("baseline", slow), _money(shown.other.row.preset, fast), short))
    lines = (
        VolumeLine("billed by use", _saved(shown, "by-use"), style.BLUE),
        VolumeLine("always on, even load", _saved(shown, "always-on"), style.VERMILION, joined=False),
    )
    return Plotted(shown, tuple(pairs), lines)


def draw(report: Report) -> Chart:
    data = plotted(report)
    if isinstance(data, str):
        return not_drawn(TITLE, HOW, data)
    shown = data.shown
    price = shown.price
    caption = Caption(
        title=f"Cost of {shown.other.row.preset} and baseline on {shown.card}",
        subtitle=shown.subtitle,
        foot=(
            f"Prices are per GPU-hour. Right: {price.dated(shown.today)}, {fmt.usd_rate(price.usd_per_gpu_hour)}. "
            f"365/12 days a month, no cold starts. Time: {shown.runs}.\n"
            "Sources of the prices: kontext_fast/cost/prices.toml."
        ),
        stamp=shown.stamp,
        note=shown.note,
    )
    titles = (f"A month of {IMAGES_PER_DAY:,} images a day, billed by use", "Saved a month by volume")
    names = ("baseline", shown.other.row.preset)
    takeaway = _takeaway(data)
    picture = analysis_picture(caption, data.pairs, data.lines, titles, names)
    return Chart(TITLE, HOW, takeaway, alt=takeaway, picture=picture, source=shown.subtitle)


def _saved(shown: HeadlineComparison, billing: Billing) -> tuple[tuple[float, float], ...]:
    tariff = shown.tariff(billing)
    return tuple((float(v), shown.savings(Demand(images_per_day=v), tariff).value) for v in VOLUMES)


def _money(name: str, estimate: Estimate) -> Money:
    return Money(name, estimate.value, estimate.interval)


def _takeaway(data: Plotted) -> str:
    cheap, dear = data.pairs[0], data.pairs[-1]
    return (
        f"{IMAGES_PER_DAY:,} images a day on {data.shown.card} with {data.shown.other.row.preset}, billed by use, cost "
        f"{fmt.usd(cheap.other.usd)} to {fmt.usd(dear.other.usd)} a month by provider "
        f"({fmt.usd(cheap.baseline.usd)} to {fmt.usd(dear.baseline.usd)} with baseline)."
    )
