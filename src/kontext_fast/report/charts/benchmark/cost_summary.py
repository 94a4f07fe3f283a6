"""What the cheapest preset gains on the card: speed, memory and quality above, money below."""

from __future__ import annotations

import re

from kontext_fast.analysis import format as fmt
from kontext_fast.cost.billing import Demand
from kontext_fast.cost.headline_comparison import HeadlineComparison
from kontext_fast.report.charting import Chart, not_drawn
from kontext_fast.report.model import Report
from kontext_fast.report.plots.money import Caption, Money, Tile, summary_picture
from kontext_fast.report.quality import PresetQuality

SECTION = "summary"
FILE = "cost/*_summary.png"
TITLE = "What the cheapest preset gains, and what that saves a month"
HOW = "Above: baseline against the preset. Below: dollars saved a month by use; whiskers are 95 % intervals."
VOLUMES = (1_000, 10_000, 100_000)


def plotted(report: Report) -> tuple[HeadlineComparison, tuple[Money, ...]] | str:
    """The comparison and dollars saved a month at each of `VOLUMES`, billed by use without cold starts, or why not."""
    shown = report.comparison
    if isinstance(shown, str):
        return shown
    bars = []
    for volume in VOLUMES:
        saved = shown.savings(Demand(images_per_day=volume), shown.tariff("by-use"))
        bars.append(Money(f"{volume:,} images a day", saved.value, saved.interval))
    return shown, tuple(bars)


def draw(report: Report) -> Chart:
    data = plotted(report)
    if isinstance(data, str):
        return not_drawn(TITLE, HOW, data)
    shown, bars = data
    caption = Caption(
        title=f"{shown.other.row.preset} on {shown.card}",
        subtitle=shown.subtitle,
        foot=_foot(shown),
        stamp=shown.stamp,
        note=shown.note,
    )
    group = next(group for group in report.groups if group.group is shown.group)
    tiles = _tiles(shown, group.quality[shown.other.preset])
    takeaway = _takeaway(shown, bars)
    picture = summary_picture(caption, tiles, bars, "Saved a month, against baseline")
    return Chart(TITLE, HOW, takeaway, alt=takeaway, picture=picture, source=shown.subtitle)


def _tiles(shown: HeadlineComparison, quality: PresetQuality) -> tuple[Tile, ...]:
    slow, fast = shown.baseline.row, shown.other.row
    factor = fast.factor
    assert slow.time is not None
    assert fast.time is not None
    times = f"{fmt.seconds_estimate(slow.time.mean)} to {fmt.seconds_estimate(fast.time.mean)} a call"
    interval = fmt.factor_range(factor) if factor else None
    kind = fmt.smallest_card(fast.memory) or fmt.peak_memory_kind(fast.memory)
    memory = filter(None, (kind, f"baseline {fmt.peak_memory(slow.memory)}"))
    verdict, _, exception = quality.words.partition(", ")
    return (
        Tile(
            "Speed",
            f"{fmt.factor(factor)} as fast" if factor else fmt.NOT_MEASURED,
            f"{times}\n" + (f"95 % interval {interval}" if interval else fmt.NO_INTERVAL),
        ),
        Tile("Memory", fmt.peak_memory(fast.memory), "\n".join(memory)),
        Tile("Quality", verdict, "\n".join(filter(None, (exception, *re.split(", |; ", quality.basis))))),
    )


def _foot(shown: HeadlineComparison) -> str:
    price = shown.price
    return (
        f"Billed by use at {price.dated(shown.today)}, {fmt.usd_rate(price.usd_per_gpu_hour)} per GPU-hour, "
        f"365/12 days a month, no cold starts. Time: {shown.runs}."
    )


def _takeaway(shown: HeadlineComparison, bars: tuple[Money, ...]) -> str:
    middle = bars[1]
    interval = f" ({fmt.usd(middle.interval[0])} to {fmt.usd(middle.interval[1])})" if middle.interval else ""
    return (
        f"At {middle.name} {shown.other.row.preset} saves {fmt.usd(middle.usd)} a month{interval} on {shown.card}, "
        f"billed by use at {shown.price.dated(shown.today)}."
    )
