"""Draws costs: a summary with tiles and bars, providers beside volumes, billing models. Knows only what it is given."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kontext_fast.analysis.format import usd

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which people with any common colour blindness can tell apart.
BASELINE_COLOR, PRESET_COLOR, THIRD_COLOR, FOURTH_COLOR = "#8a8f98", "#0072b2", "#d55e00", "#009e73"
INTERVAL_COLOR, MUTED, RULE, STAMP_COLOR = "#1c1d1f", "#5f656e", "#e4e6e9", "#a3330b"
WIDTH_IN, DPI = 12.0, 150
STAMP_LINE_IN, STAMP_WIDTH = 0.26, 108
"""What a line of a stamp takes, and its characters; a picture without one is that much lower."""


@dataclass(frozen=True)
class Words:
    """What stands around a picture."""

    title: str
    subtitle: str
    foot: str
    """Billing model, price row and date."""
    stamp: str | None = None
    """A warning that must not be overlooked."""

    def head(self, below_title: float) -> float:
        """Inches from the top edge to the content; `below_title` without a stamp."""
        return below_title + STAMP_LINE_IN * len(self.stamp_lines)

    @property
    def stamp_lines(self) -> list[str]:
        return textwrap.wrap(self.stamp or "", STAMP_WIDTH)


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


@dataclass(frozen=True)
class Pair:
    """Dollars of two presets at one price."""

    name: str
    baseline: Money
    other: Money


@dataclass(frozen=True)
class Line:
    """Dollars against images a day."""

    name: str
    points: tuple[tuple[float, float], ...]
    color: str
    dashed: bool = False
    joined: bool = True
    """False for money that moves in steps and is known at single volumes only."""
    stepped: bool = False
    """Money that moves in steps and is known at so many volumes that each step is seen."""


def summary(words: Words, tiles: Sequence[Tile], bars: Sequence[Money], bars_title: str) -> bytes:
    """Tiles above, bars of money below; PNG."""
    head = words.head(1.07)
    inches = head + 6.0
    figure = _figure(words, inches)
    for index, tile in enumerate(tiles):
        _draw_tile(figure, tile, 0.03 + index * 0.32, 0.3, inches - head)
    axes = figure.add_axes((0.2, 1.22 / inches, 0.66, 2.15 / inches))
    _clean(axes, "x")
    axes.set_title(bars_title, fontsize=12.5, loc="left", color=INTERVAL_COLOR, parse_math=False)
    ends = [0.0]
    for y, bar in enumerate(bars):
        axes.barh(y, bar.usd, height=0.55, color=PRESET_COLOR, alpha=0.85, linewidth=0)
        _whisker(axes, bar, y)
        end = max(bar.usd, *(bar.interval or (bar.usd,)), 0.0)
        ends += [bar.usd, *(bar.interval or ())]
        _say(axes, _worded(bar), (end, y))
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars], fontsize=12)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    axes.set_xlim(low - (0.05 * span if low < 0 else 0), high + 0.36 * span)
    axes.xaxis.set_major_formatter(_ticks())
    return _png(figure)


def analysis(
    words: Words, pairs: Sequence[Pair], lines: Sequence[Line], titles: tuple[str, str], names: tuple[str, str]
) -> bytes:
    """Providers on the left, savings against volume on the right; PNG. `names` are those of the two presets."""
    head = words.head(1.26)
    inches = head + 1.35 + max(2.65, 0.52 * len(pairs) + 0.25)
    figure = _figure(words, inches)
    bottom, height = 1.35 / inches, 1 - (1.35 + head) / inches
    left = figure.add_axes((0.21, bottom, 0.29, height))
    _clean(left, "x")
    left.set_title(titles[0], fontsize=12, loc="left", x=-0.62, parse_math=False)
    top = max(max(pair.baseline.usd, pair.other.usd) for pair in pairs)
    for y, pair in enumerate(pairs):
        for money, offset, color in ((pair.baseline, -0.19, BASELINE_COLOR), (pair.other, 0.19, PRESET_COLOR)):
            left.barh(y + offset, money.usd, height=0.36, color=color, alpha=0.85, linewidth=0)
            _whisker(left, money, y + offset)
            end = max(money.usd, *(money.interval or (money.usd,)))
            _say(left, usd(money.usd), (end, y + offset), size=9.5)
    left.set_yticks(range(len(pairs)), [pair.name for pair in pairs], fontsize=10)
    left.set_ylim(len(pairs) - 0.45, -0.55)
    left.set_xlim(0, top * 1.24)
    left.locator_params(axis="x", nbins=4)
    left.xaxis.set_major_formatter(_ticks())
    _legend(left, names)
    right = figure.add_axes((0.61, bottom, 0.36, height))
    _volumes(right, lines, titles[1], labelled=True)
    return _png(figure)


def volumes(words: Words, panels: Sequence[tuple[str, Sequence[Line]]], axis: str) -> bytes:
    """Dollars against volume, one panel per preset with common axes; PNG."""
    head = words.head(1.2)
    inches = head + 5.05
    figure = _figure(words, inches)
    width = 0.9 / len(panels)
    drawn = []
    for index, (title, lines) in enumerate(panels):
        place = (0.095 + index * width, 1.45 / inches, width - 0.08, 3.6 / inches)
        axes = figure.add_axes(place)
        _volumes(axes, lines, title, labelled=False)
        axes.legend(fontsize=9.5, frameon=False, loc="upper left")
        drawn.append(axes)
    drawn[0].set_ylabel(axis, fontsize=10.5, color=MUTED)
    lowest = min(axes.get_ylim()[0] for axes in drawn)
    highest = max(axes.get_ylim()[1] for axes in drawn)
    for axes in drawn:
        axes.set_ylim(lowest, highest * 4)
    return _png(figure)


def _figure(words: Words, inches: float) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, inches), dpi=DPI, facecolor="white")
    figure.text(0.03, 1 - 0.42 / inches, words.title, fontsize=17, fontweight="bold", parse_math=False)
    figure.text(0.03, 1 - 0.74 / inches, words.subtitle, fontsize=11, color=MUTED, parse_math=False)
    if words.stamp:
        figure.text(
            0.03,
            1 - 0.92 / inches,
            "\n".join(words.stamp_lines),
            va="top",
            fontsize=11.5,
            fontweight="bold",
            color=STAMP_COLOR,
            parse_math=False,
        )
    figure.text(0.03, 0.16 / inches, words.foot, fontsize=9.5, color=MUTED, va="bottom", parse_math=False)
    return figure


def _draw_tile(figure: Any, tile: Tile, left: float, width: float, top_in: float) -> None:
    """`top_in` inches above the lower edge of the picture."""
    from matplotlib.patches import FancyBboxPatch

    inches = figure.get_figheight()

    def below(distance_in: float) -> float:
        return float((top_in - distance_in) / inches)

    figure.patches.append(
        FancyBboxPatch(
            (left, below(1.81)),
            width,
            1.81 / inches,
            boxstyle="round,pad=0,rounding_size=0.008",
            transform=figure.transFigure,
            facecolor="#f5f6f8",
            edgecolor=RULE,
        )
    )
    figure.text(left + 0.015, below(0.3), tile.name, fontsize=11, color=MUTED, parse_math=False)
    size = 24 if len(tile.value) <= 16 else 17
    figure.text(left + 0.015, below(0.89), tile.value, fontsize=size, fontweight="bold", parse_math=False)
    place = (left + 0.015, below(1.07))
    figure.text(*place, tile.detail, fontsize=10, color=MUTED, va="top", linespacing=1.45, parse_math=False)


def _volumes(axes: Axes, lines: Sequence[Line], title: str, *, labelled: bool) -> None:
    """Both axes logarithmic; where nothing is saved, which such an axis cannot show, a cross stands on the floor."""
    _clean(axes, "both")
    axes.set_title(title, fontsize=12, loc="left", parse_math=False)
    axes.set_xscale("log")
    axes.set_yscale("log")
    positive = [y for line in lines for _, y in line.points if y > 0] or [1.0]
    floor = min(positive) / 2.5
    for line in lines:
        shown = [(x, y) for x, y in line.points if y > 0]
        style = (0, (4, 3)) if line.dashed else "-" if line.joined else "none"
        axes.plot(
            [x for x, _ in shown],
            [y for _, y in shown],
            linestyle=style,
            drawstyle="steps-post" if line.stepped else "default",
            color=line.color,
            linewidth=1.8,
            marker=("o" if line.joined else "D") if labelled else None,
            markersize=5.5,
            label=line.name,
        )
        nothing = [x for x, y in line.points if y <= 0]
        if nothing:
            axes.plot(nothing, [floor * 1.35] * len(nothing), "x", color=line.color, markersize=7)
    if labelled:
        for x, y in lines[0].points:
            if y > 0:
                _say(axes, usd(y), (x, y), size=9.5, down=True)
        axes.legend(fontsize=9.5, frameon=False, loc="upper left")
    axes.set_ylim(floor, max(positive) * (6 if labelled else 1.5))
    xs = [x for line in lines for x, _ in line.points]
    axes.set_xlim(min(xs) / (1.6 if labelled else 1), max(xs) * (5 if labelled else 1))
    axes.set_xlabel("images a day", fontsize=10.5, color=MUTED)
    axes.xaxis.set_major_formatter(_ticks(lambda x: f"{x:,.0f}"))
    axes.yaxis.set_major_formatter(_ticks())
    axes.minorticks_off()


def _legend(axes: Axes, names: tuple[str, str]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(color=color, label=name) for color, name in zip((BASELINE_COLOR, PRESET_COLOR), names, strict=True)
    ]
    axes.legend(handles=handles, fontsize=9.5, frameon=False, ncols=2, loc="upper right", bbox_to_anchor=(1.02, -0.1))


def _clean(axes: Axes, grid: Any) -> None:
    axes.tick_params(axis="both", labelsize=10, colors=MUTED, length=0)
    axes.grid(axis=grid, color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _whisker(axes: Axes, money: Money, y: float) -> None:
    if money.interval is not None and money.interval[0] != money.interval[1]:
        axes.plot(money.interval, [y, y], color=INTERVAL_COLOR, linewidth=1.6, solid_capstyle="butt")
        axes.plot(money.interval, [y, y], "|", color=INTERVAL_COLOR, markersize=8, markeredgewidth=1.5)


def _worded(money: Money) -> str:
    if money.interval is None:
        return usd(money.usd)
    low, high = money.interval
    return f"{usd(money.usd)}  ({usd(low)} to {usd(high)})"


def _say(axes: Axes, words: str, at: tuple[float, float], *, size: float = 11, down: bool = False) -> None:
    """Words to the right of a point, or below that."""
    axes.annotate(
        words,
        at,
        xytext=(6, -7 if down else 0),
        textcoords="offset points",
        va="center",
        fontsize=size,
        parse_math=False,
    )


def _ticks(words: Callable[[float], str] = usd) -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: words(value).removesuffix(".00"))


def _png(figure: Any) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()
