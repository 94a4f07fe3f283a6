"""What the cheapest preset gains on the card: speed, memory and quality above, money below."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from kontext_fast.analysis import format as fmt
from kontext_fast.cost.billing import Demand
from kontext_fast.cost.cards import slug
from kontext_fast.cost.headline_comparison import HeadlineComparison, headline_comparison
from kontext_fast.cost.prices import load_prices
from kontext_fast.records.atomic import write_atomically
from kontext_fast.records.schema import ResultFile
from kontext_fast.report.charting import Chart
from kontext_fast.report.plots import money as pictures
from kontext_fast.report.plots.money import Money, Tile, Words
from kontext_fast.report.verdicts import PresetVerdict, Verdicts

SECTION = "cost"
SHOWS_VERDICTS = True
FOLDER = Path("cost")
SUFFIX = "_summary.png"
TITLE = "What the cheapest preset gains, and what that saves a month"
VOLUMES = (1_000, 10_000, 100_000)


def plotted(result: ResultFile, today: date) -> tuple[HeadlineComparison, tuple[Money, ...]] | str:
    """The comparison and dollars saved a month at each of `VOLUMES`, billed by use without cold starts, or why not."""
    shown = headline_comparison(result, load_prices(), today)
    if isinstance(shown, str):
        return shown
    bars = []
    for volume in VOLUMES:
        saved = shown.savings(Demand(images_per_day=volume), shown.tariff("by-use"))
        bars.append(Money(f"{volume:,} images a day", saved.value, saved.interval))
    return shown, tuple(bars)


def draw(result: ResultFile, folder: Path, verdicts: Verdicts | None = None) -> Chart:
    """Write `cost/<card>_summary.png` below `folder`; without a price earlier ones are removed and none is drawn."""
    for old in (folder / FOLDER).glob(f"*{SUFFIX}"):
        old.unlink()
    data = plotted(result, date.today())
    how = "Above: baseline against the preset. Below: dollars saved a month by use; whiskers are 95 % intervals."
    if isinstance(data, str):
        return Chart(path=None, title=TITLE, how_to_read=how, takeaway=f"Not drawn: {data}.", alt=f"None: {data}.")
    shown, bars = data
    path = folder / FOLDER / f"{slug(shown.card)}{SUFFIX}"
    words = Words(
        title=f"{shown.other.row.preset} on {shown.card}",
        subtitle=shown.subtitle,
        foot=_foot(shown),
        stamp=shown.stamp,
    )
    write_atomically(
        path, pictures.summary(words, _tiles(shown, verdicts or {}), bars, "Saved a month, against baseline")
    )
    return Chart(path=path, title=TITLE, how_to_read=how, takeaway=_takeaway(shown, bars), alt=_takeaway(shown, bars))


def _tiles(shown: HeadlineComparison, verdicts: Verdicts) -> tuple[Tile, ...]:
    slow, fast = shown.baseline.row, shown.other.row
    factor = fast.factor
    assert slow.time is not None
    assert fast.time is not None
    times = f"{fmt.seconds_estimate(slow.time.mean)} to {fmt.seconds_estimate(fast.time.mean)} a call"
    interval = fmt.factor_range(factor) if factor else None
    return (
        Tile(
            "Speed",
            f"{fmt.factor(factor)} as fast" if factor else fmt.NOT_MEASURED,
            f"{times}\n" + (f"95 % interval {interval}" if interval else "no interval"),
        ),
        Tile(
            "Memory",
            fmt.peak_memory(fast.memory),
            "\n".join(filter(None, (fmt.peak_memory_kind(fast.memory), f"baseline {fmt.peak_memory(slow.memory)}"))),
        ),
        _quality(shown, verdicts.get(fast.preset)),
    )


def _quality(shown: HeadlineComparison, verified: PresetVerdict | None) -> Tile:
    """The verdict where there is one, else what the judge accepts."""
    if verified is not None:
        meaning = "" if verified.level == verified.meaning else f"{verified.meaning}\n"
        return Tile("Quality", verified.level, meaning + verified.where)
    accepted = shown.other.row.accepted
    value = f"{fmt.percent(accepted.value)} accepted" if accepted else fmt.NOT_MEASURED
    return Tile("Quality", value, _against(shown))


def _against(shown: HeadlineComparison) -> str:
    slow, fast = shown.baseline.row, shown.other.row
    if fast.accepted is None:
        checkpoint = shown.group.checkpoint
        random = checkpoint is not None and checkpoint.random_weights
        return "the weights are random:\nno image to judge" if random else "no judge has seen these images"
    of = f"by the judge, {fmt.count(fast.accepted.n, 'item')}"
    return f"{of}\nbaseline {fmt.percent(slow.accepted.value)}" if slow.accepted else of


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
