"""The original's two charts, drawn from its published figures and stamped as such."""

from __future__ import annotations

from examples.original import figures
from examples.original.figures import Published
from kontext_fast.analysis import format as fmt
from kontext_fast.cost.billing import Demand, cost
from kontext_fast.report.plots import money as plots
from kontext_fast.report.plots import style
from kontext_fast.report.plots.money import Caption, Money, ProviderPair, Tile, VolumeLine
from kontext_fast.report.plots.style import Picture

STAMP = "As published, not measured here"
SCENARIOS = (1_000, 10_000, 100_000)


def summary_picture(of: Published) -> Picture:
    """h100_summary.png."""
    saved = of.baseline_s - of.optimized_s
    tiles = (
        Tile(
            "Speed",
            f"{of.baseline_s / of.optimized_s:.2f}x as fast",
            f"{of.baseline_s:g} s to {of.optimized_s:g} s per image, text-to-image\nno interval was published",
        ),
        Tile("Time saved", f"{saved:.2f} s an image", f"{100 * saved / of.baseline_s:.0f} % of the GPU time, by use"),
        Tile("Quality", "not established", of.quality),
    )
    price = of.reference_usd_per_hour
    bars = [Money(_named(volume), figures.month(of, price, images_per_day=volume)) for volume in SCENARIOS]
    return plots.summary_picture(_caption(of, "FLUX.1-Kontext on an H100 PCIe"), tiles, bars, "Saved a month")


def analysis_picture(of: Published) -> Picture:
    """h100_cost_analysis.png."""
    demand = Demand(images_per_day=of.images_per_day, days_per_month=of.days_per_month)
    pairs = []
    for name, price in sorted(of.usd_per_hour.items(), key=lambda row: row[1]):
        tariff = figures.tariff(of, price)
        slow, fast = (
            cost(figures.work(seconds), demand, tariff, today=of.day).per_month.value
            for seconds in (of.baseline_s, of.optimized_s)
        )
        label = f"{name}\n{fmt.usd_rate(price)} per GPU-hour"
        pairs.append(ProviderPair(label, Money("baseline", slow), Money("optimized", fast)))
    price = of.reference_usd_per_hour
    points = tuple((float(volume), figures.month(of, price, images_per_day=volume)) for volume in of.volumes)
    line = VolumeLine(f"billed by use, {of.reference_price}", points, style.PRESET_COLOR)
    titles = (f"A month of {of.images_per_day:,.0f} images a day", "Saved a month by volume")
    names = (f"baseline, {of.baseline_s:g} s", f"optimized, {of.optimized_s:g} s")
    return plots.analysis_picture(_caption(of, "Six prices, one time"), pairs, [line], titles, names)


def _caption(of: Published, title: str) -> Caption:
    return Caption(
        title=title,
        subtitle=f"{of.steps} steps, 1024x1024, {of.day}. {of.source}",
        foot=(
            f"Billed by use, {fmt.usd_rate(of.reference_usd_per_hour)} per GPU-hour ({of.reference_price}) where no "
            f"other price stands, {of.days_per_month:g} days a month. No cold starts, no idle time, no "
            "encoding, no interval."
        ),
        stamp=STAMP,
    )


def _named(volume: int) -> str:
    return f"{volume:,} a day"
