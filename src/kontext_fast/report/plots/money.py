"""Draws costs: a summary with tiles and bars, providers beside volumes, billing models."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kontext_fast.analysis.format import usd
from kontext_fast.report.plots import style
from kontext_fast.report.plots.style import Canvas, Picture
from kontext_fast.report.plots.svg import tip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAMP_LINE_IN, STAMP_WIDTH = 0.26, 108
"""What a line of a stamp takes, and its characters; a picture without one is that much lower."""


@dataclass(frozen=True)
class Caption:
    """The words around a picture."""

    title: str
    subtitle: str
    foot: str
    """Billing model, price row and date."""
    stamp: str | None = None
    """A warning that must not be overlooked."""
    note: str | None = None
    """What must be said with the numbers, such as which steps a preset computes."""


@dataclass(frozen=True)
class Tile:
    name: str
    value: str
    detail: str


@dataclass(frozen=True)
class Money:
    """Dollars of one thing, with its interval where there is one."""

    name: str
    usd: float
    interval: tuple[float, float] | None = None

    @property
    def end(self) -> float:
        """Where its bar and whisker end."""
        return max(style.end_of(self.usd, self.interval), 0.0)


@dataclass(frozen=True)
class ProviderPair:
    """Dollars of two presets at one price."""

    name: str
    baseline: Money
    other: Money
    short: str = ""
    """The name where there is little room."""


@dataclass(frozen=True)
class VolumeLine:
    """Dollars against images a day."""

    name: str
    points: tuple[tuple[float, float], ...]
    color: str
    dashed: bool = False
    joined: bool = True
    """False for money that moves in steps and is known at single volumes only."""
    stepped: bool = False
    """Money that moves in steps and is known at so many volumes that each step is seen."""


def summary_picture(caption: Caption, tiles: Sequence[Tile], bars: Sequence[Money], bars_title: str) -> Picture:
    """Tiles above, bars of money below, on a logarithmic axis where all are above 0: a picture for slides and posts."""
    return Picture(lambda _: _summary_figure(caption, tiles, bars, bars_title))


def _summary_figure(caption: Caption, tiles: Sequence[Tile], bars: Sequence[Money], bars_title: str) -> Any:
    figure, head = _figure(caption, style.FILE, head_in=1.07, below_in=5.6)
    inches = figure.get_figheight()
    for index, tile in enumerate(tiles):
        _draw_tile(figure, tile, 0.03 + index * 0.32, 0.3, inches - head)
    axes = figure.add_axes((0.2, 1.1 / inches, 0.66, 1.9 / inches), facecolor="none")
    _bars(axes, [bar.name for bar in bars], bars_title)
    ends = [end for bar in bars for end in (bar.usd, *(bar.interval or ()))]
    if min(ends) > 0:
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xlim(10 ** math.floor(math.log10(min(ends)) - 0.3), max(ends) * 12)
    else:
        span = (max(ends) - min(0.0, *ends)) or 1.0
        axes.set_xlim(min(0.0, *ends) - 0.05 * span, max(ends) + 0.36 * span)
    for y, bar in enumerate(bars):
        axes.barh(y, bar.usd, height=0.55, color=style.PRESET_COLOR, linewidth=0)
        style.whisker(axes, y, bar.interval)
        interval = f"  ({usd(bar.interval[0])} to {usd(bar.interval[1])})" if bar.interval else ""
        style.row_words(axes, bar.end, y, usd(bar.usd) + interval)
    axes.xaxis.set_major_formatter(_ticks(usd))
    return figure


def analysis_picture(
    caption: Caption,
    pairs: Sequence[ProviderPair],
    lines: Sequence[VolumeLine],
    titles: tuple[str, str],
    names: tuple[str, str],
) -> Picture:
    """Providers on the left, savings against volume on the right, one below the other on a phone. `names` are those of
    the two presets."""

    def draw(canvas: Canvas) -> Any:
        providers_in = max(2.65, 0.52 * len(pairs) + 0.25)
        if canvas.narrow:
            figure = style.new_figure(providers_in + 5.6, canvas.width_in)
            inches = figure.get_figheight()
            left = figure.add_axes((0.38, 4.85 / inches, 0.6, providers_in / inches), facecolor="none")
            right = figure.add_axes((0.2, 0.9 / inches, 0.74, 2.7 / inches), facecolor="none")
        else:
            figure, head = _figure(caption, canvas, head_in=1.26, below_in=1.35 + providers_in)
            inches = figure.get_figheight()
            bottom, height = 1.35 / inches, 1 - (1.35 + head) / inches
            left = figure.add_axes((0.21, bottom, 0.29, height), facecolor="none")
            right = figure.add_axes((0.61, bottom, 0.36, height), facecolor="none")
        _providers(left, pairs, titles[0], names, narrow=canvas.narrow)
        _volumes(right, lines, titles[1], labelled=True)
        return figure

    return Picture(draw)


def _providers(axes: Axes, pairs: Sequence[ProviderPair], title: str, names: tuple[str, str], *, narrow: bool) -> None:
    _bars(axes, [pair.short if narrow else pair.name for pair in pairs], title, title_x=-0.6)
    colors = (style.BASELINE_COLOR, style.PRESET_COLOR)
    for y, pair in enumerate(pairs):
        for money, offset, color in zip((pair.baseline, pair.other), (-0.19, 0.19), colors, strict=True):
            (bar,) = axes.barh(y + offset, money.usd, height=0.36, color=color, linewidth=0)
            between = f" ({usd(money.interval[0])} to {usd(money.interval[1])})" if money.interval else ""
            tip(bar, f"{money.name} at {pair.name}: {usd(money.usd)}{between} a month".replace("\n", ", "))
            style.whisker(axes, y + offset, money.interval)
            style.row_words(axes, money.end, y + offset, usd(money.usd), size=9.5)
    axes.set_xlim(0, max(max(pair.baseline.end, pair.other.end) for pair in pairs) * 1.28)
    axes.locator_params(axis="x", nbins=4)
    _legend(axes, list(zip(names, colors, strict=True)))


def volume_picture(caption: Caption, panels: Sequence[tuple[str, Sequence[VolumeLine]]], axis: str) -> Picture:
    """Dollars against volume, one panel per preset with common axes."""

    def draw(canvas: Canvas) -> Any:
        if canvas.narrow:
            figure = style.new_figure(4.1 * len(panels), canvas.width_in)
            inches = figure.get_figheight()
            places = [(0.2, (inches - 4.1 * (i + 1) + 0.75) / inches, 0.74, 2.8 / inches) for i in range(len(panels))]
        else:
            figure, _ = _figure(caption, canvas, head_in=1.2, below_in=5.05)
            inches, width = figure.get_figheight(), 0.9 / len(panels)
            low = 1.45 if canvas.headed else 0.75
            places = [(0.095 + i * width, low / inches, width - 0.08, 3.6 / inches) for i in range(len(panels))]
        drawn = []
        for place, (title, lines) in zip(places, panels, strict=True):
            axes = figure.add_axes(place, facecolor="none")
            _volumes(axes, lines, title, labelled=False)
            drawn.append(axes)
        drawn[0].set_ylabel("" if canvas.narrow else axis, fontsize=11, color=style.MUTED)
        lowest = min(axes.get_ylim()[0] for axes in drawn)
        highest = max(axes.get_ylim()[1] for axes in drawn)
        for axes in drawn:
            axes.set_ylim(lowest, highest * (30 if canvas.narrow else 4))
        return figure

    return Picture(draw)


def _figure(caption: Caption, canvas: Canvas, *, head_in: float, below_in: float) -> tuple[Any, float]:
    """The figure with its caption, and the inches from its upper edge to the content: `head_in` without stamp and note.

    On a page the words stand in the page.
    """
    if not canvas.headed:
        return style.new_figure(0.45 + below_in - 0.6, canvas.width_in), 0.45
    lines = [(line, style.FAILURE, "bold") for line in _wrapped(caption.stamp)]
    lines += [(line, style.MUTED, "normal") for line in _wrapped(caption.note)]
    head_in += STAMP_LINE_IN * len(lines)
    figure = style.new_figure(head_in + below_in)

    def write(y_in: float, text: str, **how: Any) -> None:
        figure.text(0.03, y_in / figure.get_figheight(), text, parse_math=False, **how)

    top = head_in + below_in
    write(top - 0.42, caption.title, fontsize=16, fontweight="bold", color=style.INK)
    write(top - 0.74, caption.subtitle, fontsize=11, color=style.MUTED)
    for number, (line, color, weight) in enumerate(lines):
        write(top - 1.0 - STAMP_LINE_IN * number, line, fontsize=11, fontweight=weight, color=color)
    write(0.16, caption.foot, fontsize=9.5, color=style.MUTED, va="bottom")
    return figure, head_in


def _wrapped(text: str | None) -> list[str]:
    return textwrap.wrap(text or "", STAMP_WIDTH)


def _draw_tile(figure: Any, tile: Tile, left: float, width: float, top_in: float) -> None:
    """`top_in` inches above the lower edge of the picture."""
    from matplotlib.patches import FancyBboxPatch

    inches = figure.get_figheight()

    def write(below_in: float, text: str, **how: Any) -> None:
        figure.text(left + 0.015, (top_in - below_in) / inches, text, parse_math=False, **how)

    box = FancyBboxPatch(
        (left, (top_in - 1.81) / inches),
        width,
        1.81 / inches,
        boxstyle="round,pad=0,rounding_size=0.008",
        transform=figure.transFigure,
        facecolor="#f5f6f8",
        edgecolor=style.GRID,
    )
    figure.patches.append(box)
    write(0.3, tile.name, fontsize=11, color=style.MUTED)
    write(0.89, tile.value, fontsize=24 if len(tile.value) <= 16 else 14, fontweight="bold", color=style.INK)
    write(1.07, tile.detail, fontsize=10, color=style.MUTED, va="top", linespacing=1.45)


def _bars(axes: Axes, names: Sequence[str], title: str, *, title_x: float = 0.0) -> None:
    """Clean axes of bars of dollars, one row per name."""
    style.clean(axes, "x")
    axes.set_title(title, fontsize=12, loc="left", x=title_x, color=style.INK, parse_math=False)
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.xaxis.set_major_formatter(_ticks(usd))


def _volumes(axes: Axes, lines: Sequence[VolumeLine], title: str, *, labelled: bool) -> None:
    """Both axes logarithmic; where nothing is saved, which such an axis cannot show, a cross stands on the floor."""
    style.clean(axes, "both", x="images a day")
    axes.set_title(title, fontsize=12, loc="left", color=style.INK, parse_math=False)
    axes.set_xscale("log")
    axes.set_yscale("log")
    positive = [y for line in lines for _, y in line.points if y > 0] or [1.0]
    floor, saves_nothing = min(positive) / 2.5, False
    for line in lines:
        shown = [(x, y) for x, y in line.points if y > 0]
        axes.plot(
            [x for x, _ in shown],
            [y for _, y in shown],
            linestyle=style.DASHED if line.dashed else "-" if line.joined else "none",
            drawstyle="steps-post" if line.stepped else "default",
            color=line.color,
            linewidth=1.8,
            marker=("o" if line.joined else "D") if labelled else None,
            markersize=5.5,
            label=line.name,
        )
        nothing = [x for x, y in line.points if y <= 0]
        saves_nothing |= bool(nothing)
        axes.plot(nothing, [floor * 1.35] * len(nothing), "x", color=line.color, markersize=7)
    if labelled:
        for x, y in lines[0].points:
            if y > 0:
                style.row_words(axes, x, y, usd(y), size=9.5, down=7)
    if saves_nothing:
        axes.plot([], [], "x", color=style.MUTED, markersize=7, label="saves nothing at this volume")
    axes.legend(fontsize=9.5, frameon=False, loc="upper left", labelcolor=style.INK)
    axes.set_ylim(floor, max(positive) * (6 if labelled else 1.5))
    xs = [x for line in lines for x, _ in line.points]
    axes.set_xlim(min(xs) / (1.6 if labelled else 1), max(xs) * (5 if labelled else 1))
    axes.xaxis.set_major_formatter(_ticks(lambda x: f"{x:,.0f}"))
    axes.yaxis.set_major_formatter(_ticks(usd))
    axes.minorticks_off()


def _legend(axes: Axes, names: Sequence[tuple[str, str]]) -> None:
    """Names with their colours, below the axes."""
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=name) for name, color in names]
    axes.legend(
        handles=handles,
        fontsize=9.5,
        frameon=False,
        ncols=2,
        loc="upper right",
        bbox_to_anchor=(1.02, -0.1),
        labelcolor=style.INK,
    )


def _ticks(words: Callable[[float], str]) -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: words(value).removesuffix(".00"))
