"""The one palette and style of all charts. Figures are made without pyplot, so that no global state is touched."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

from kontext_fast.records.names import is_peer
from kontext_fast.records.schema import BASELINE, CONTROL
from kontext_fast.report.plots.svg import inline_svg, standalone_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which people with any common colour blindness can tell apart.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = COLORS
GRAY, INK, MUTED, GRID, FAILURE = "#8a8f98", "#1c1d1f", "#5f656e", "#e4e6e9", "#a3330b"
PAPER, ON_COLOR, NO_DATA = "#ffffff", "#fefefe", "#f4f5f6"
"""Behind everything, words on a dark colour, and a cell without a number."""
BASELINE_COLOR, PRESET_COLOR, PEER_COLOR = GRAY, BLUE, ORANGE

VARIABLES: Final = {
    BLUE: "blue", ORANGE: "orange", GREEN: "green", PURPLE: "purple", SKY: "sky", VERMILION: "vermilion",
    GRAY: "gray", INK: "ink", MUTED: "soft", GRID: "line", FAILURE: "failure", ON_COLOR: "on-color", NO_DATA: "no-data",
    PAPER: "raised",
}  # fmt: skip
"""Of each colour the CSS variable that a page has for it in its light and in its dark scheme."""
DARK: Final = {
    BLUE: "#56b4e9", ORANGE: "#f0b35a", GREEN: "#4fd0a5", PURPLE: "#e3a6c8", SKY: "#9ad3f5", VERMILION: "#ff9d6b",
    GRAY: "#8b939e", INK: "#eceef0", MUTED: "#a9b0b9", GRID: "#31363c", FAILURE: "#f5b597", ON_COLOR: "#15171a",
    NO_DATA: "#23272c", PAPER: "#15171a",
}  # fmt: skip
"""What stands for each colour in a file that is shown on a dark page."""

DPI = 150
"""At half of its 1800 pixels the smallest letters of a wide picture are still as large as those of a page."""
FOOT_IN = 0.6
"""Below the axes of a panel."""
DASHED = (0, (4, 3))

_ROUND_FACTORS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class Canvas:
    """Where a picture is seen."""

    width_in: float
    headed: bool
    """Whether title and source are part of the picture; a page has them beside it."""

    @property
    def narrow(self) -> bool:
        return self.width_in < 6

    def letters(self, size: float, *, bold: bool = False) -> int:
        """How many letters of `size` points fit into a line; many of a bold headline are digits, which are wide."""
        return int(self.width_in * 72 / ((0.64 if bold else 0.55) * size))


FILE = Canvas(12.0, headed=True)
DESKTOP = Canvas(12.0, headed=False)
CARD = Canvas(7.6, headed=False)
"""Half of a page."""
PHONE = Canvas(4.4, headed=False)
PHONE_FILE = Canvas(4.4, headed=True)


@dataclass(frozen=True)
class Picture:
    """A picture that is drawn where it is needed: as a file, wide on a page, and narrow on a phone."""

    draw: Callable[[Canvas], Any]
    """The figure for a canvas."""

    def png(self) -> bytes:
        return png(self.draw(FILE))

    def wide(self, label: str) -> str:
        """SVG for a page; `label` is its name."""
        return inline_svg(self.draw(DESKTOP), label, VARIABLES, "wide")

    def half(self, label: str) -> str:
        """SVG for half of a page."""
        return inline_svg(self.draw(CARD), label, VARIABLES, "wide")

    def narrow(self, label: str) -> str:
        return inline_svg(self.draw(PHONE), label, VARIABLES, "narrow")

    def svg_file(self, label: str, *, dark: bool, canvas: Canvas = FILE) -> str:
        """SVG to be shown as a picture on a page of either scheme, through which the page is seen."""
        colours = DARK if dark else {}
        return standalone_svg(self.draw(canvas), label, {**colours, PAPER: "none"})


def new_figure(inches: float, width_in: float = FILE.width_in) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, inches), dpi=DPI, facecolor=PAPER)


def png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def color_of(preset: str) -> str:
    """Gray is baseline, blue are presets of this package, orange are recipes of other projects: in every chart."""
    if preset in (BASELINE, CONTROL):
        return BASELINE_COLOR
    return PEER_COLOR if is_peer(preset) else PRESET_COLOR


WHO = (("baseline", BASELINE_COLOR), ("kontext-fast", PRESET_COLOR), ("other projects", PEER_COLOR))


def who(presets: Iterable[str]) -> list[tuple[str, str]]:
    """The legend of the colours that `presets` have."""
    used = {color_of(preset) for preset in presets}
    return [(name, color) for name, color in WHO if color in used]


class Titled(Protocol):
    @property
    def title(self) -> str: ...

    @property
    def subtitle(self) -> str: ...


AnyPanel = TypeVar("AnyPanel", bound=Titled)


@dataclass(frozen=True)
class Slot:
    """The part of a figure in which a panel draws."""

    figure: Any
    canvas: Canvas
    top_in: float
    """Its upper edge above the lower edge of the figure."""
    height_in: float

    def axes(self, left: float, right: float, *, head_in: float = 0.1, foot_in: float = FOOT_IN) -> Any:
        """Axes from `left` to `right`, as fractions of the figure's width."""
        inches = self.figure.get_figheight()
        bottom = (self.top_in - self.height_in + foot_in) / inches
        place = (left, bottom, right - left, (self.height_in - head_in - foot_in) / inches)
        return self.figure.add_axes(place, facecolor="none")


Legend = Sequence[tuple[str, str]]


def panels_picture(
    headline: str,
    panels: Sequence[AnyPanel],
    height_in: Callable[[AnyPanel, Canvas], float],
    draw: Callable[[Slot, AnyPanel], None],
    names: Legend = (),
) -> Picture:
    """One panel below the other under the `headline`, with a legend of `names` with their colours.

    `height_in` is what a panel takes without its heading. On a page the headline stands in the page.
    """

    def figure_for(canvas: Canvas) -> Any:
        lines = textwrap.wrap(headline, canvas.letters(15, bold=True)) if canvas.headed else []
        heads = [_heading(panel, canvas, alone=len(panels) == 1) for panel in panels]
        legend_in = _legend_in(names, canvas)
        top = 0.3 * len(lines) + (0.2 if lines else 0.0)
        heights = [
            sum(step for _, _, step in head) + height_in(panel, canvas)
            for head, panel in zip(heads, panels, strict=True)
        ]
        figure = new_figure(top + legend_in + sum(heights), canvas.width_in)
        edge = top + legend_in + sum(heights)
        for number, line in enumerate(lines):
            text(figure, edge - 0.36 - 0.3 * number, line, fontsize=15, fontweight="bold", color=INK)
        edge -= top
        for number, (panel, head, height) in enumerate(zip(panels, heads, heights, strict=True)):
            below = edge
            for words, how, step in head:
                below -= step
                text(figure, below + 0.07, words, **how)
            if number == 0 and names:
                _legend(figure, names, below, canvas)
                below -= legend_in
                height += legend_in
            draw(Slot(figure, canvas, below, height - (edge - below)), panel)
            edge -= height
        return figure

    return Picture(figure_for)


def _heading(panel: Titled, canvas: Canvas, *, alone: bool) -> list[tuple[str, dict[str, Any], float]]:
    """Lines with their style and the inches that each takes. On a page the heading of a panel that is alone is text."""
    if alone and not canvas.headed:
        return []
    size = 12 if canvas.narrow else 13
    lines: list[tuple[str, dict[str, Any], float]] = [
        (line, {"fontsize": size, "fontweight": "bold", "color": INK}, 0.28)
        for line in textwrap.wrap(panel.title, canvas.letters(size))
    ]
    if canvas.headed:
        lines += [
            (line, {"fontsize": 11, "color": MUTED}, 0.24) for line in textwrap.wrap(panel.subtitle, canvas.letters(11))
        ]
    return lines


def clean(axes: Axes, grid: Literal["x", "y", "both"], *, x: str = "", y: str = "") -> None:
    """No frame and no tick marks; a grid along the axes that carry numbers, which are called `x` and `y`."""
    axes.set_xlabel(x, fontsize=11, color=MUTED)
    axes.set_ylabel(y, fontsize=11, color=MUTED)
    axes.tick_params(which="both", labelsize=10.5, colors=MUTED, length=0)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def words_in(words: str, size: float = 11) -> float:
    """Inches that `words` take, about."""
    return 0.55 * size / 72 * len(words)


def width_in(axes: Any) -> float:
    """Inches of the axes from left to right."""
    return float(axes.get_position().width * axes.figure.get_figwidth())


def share_of(axes: Any, words: str, gap_in: float) -> float:
    """How much of the width of the axes `words` and the gap before them take, three quarters at most."""
    return min(0.75, (words_in(words) + gap_in) / width_in(axes))


def row_words(
    axes: Axes,
    x: float,
    y: float,
    words: str,
    color: str = INK,
    *,
    size: float = 11,
    down: float = 0,
    bold: bool = False,
) -> None:
    """Write `words` to the right of where the drawing of a row ends, `down` points lower."""
    axes.annotate(
        words,
        (x, y),
        xytext=(8, -down),
        textcoords="offset points",
        va="center",
        fontsize=size,
        fontweight="bold" if bold else "normal",
        color=color,
        parse_math=False,
    )


def whisker(axes: Axes, y: float, interval: tuple[float, float] | None) -> None:
    """An interval along x; nothing where there is none."""
    if interval is not None and interval[0] != interval[1]:
        axes.plot(interval, [y, y], color=INK, linewidth=1.4, solid_capstyle="butt")
        axes.plot(interval, [y, y], "|", color=INK, markersize=7, markeredgewidth=1.4)


def end_of(value: float, interval: tuple[float, float] | None) -> float:
    """Where the drawing of a value with its interval ends, and its words begin."""
    return max(value, *(interval or (value,)))


def factor_scale(
    axes: Axes, factors: Iterable[float], *, right: float, words: Iterable[tuple[float, str]] = ()
) -> None:
    """A logarithmic axis on which 2x and 0.5x are equally far from 1, with room for words: `right` times its span, and
    what each of `words` takes behind its factor."""
    ends = [1.0, *factors]
    span = max(math.log(max(ends) / min(ends)), math.log(1.3))
    low, high = min(ends) * math.exp(-0.1 * span), max(ends) * math.exp(right * span)
    for end, said in words:
        high = max(high, low * (end / low) ** (1 / (1 - share_of(axes, said, gap_in=0.1))))
    kept: list[float] = []
    for tick in sorted(_ROUND_FACTORS, key=lambda tick: abs(math.log(tick))):
        apart = all(abs(math.log(tick / other)) >= 0.08 * math.log(high / low) for other in kept)
        if low <= tick <= 1.3 * max(ends) and apart:
            kept.append(tick)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(kept, labels=[f"{tick:g}" for tick in kept])
    axes.set_xticks([], minor=True)
    axes.axvline(1, color=INK, linewidth=1.2, linestyle=DASHED, zorder=1)


def text(figure: Any, y_in: float, words: str, **style: Any) -> None:
    """Write `words` at the left edge, `y_in` inches above the lower one."""
    left = 0.18 / figure.get_figwidth() if figure.get_figwidth() > 6 else 0.0
    figure.text(left, y_in / figure.get_figheight(), words, parse_math=False, **style)


_LEGEND_LINE_IN = 0.26


def _columns(names: Legend, canvas: Canvas) -> int:
    longest = max(words_in(name) for name, _ in names) + 0.45
    return max(1, min(len(names), int((canvas.width_in - 0.2) / longest)))


def _legend_in(names: Legend, canvas: Canvas) -> float:
    return 0.12 + _LEGEND_LINE_IN * math.ceil(len(names) / _columns(names, canvas)) if names else 0.0


def _legend(figure: Any, names: Legend, top_in: float, canvas: Canvas) -> None:
    """Row by row below `top_in`."""
    from matplotlib.patches import Patch

    columns = _columns(names, canvas)
    lines = math.ceil(len(names) / columns)
    # Matplotlib fills a legend column by column.
    ordered = [
        names[row * columns + column]
        for column in range(columns)
        for row in range(lines)
        if row * columns + column < len(names)
    ]
    inches = figure.get_figheight()
    figure.legend(
        handles=[Patch(color=color, label=name) for name, color in ordered],
        loc="upper left",
        bbox_to_anchor=(0.009 if canvas.headed else 0.0, (top_in - 0.02) / inches),
        borderpad=0.2,
        ncols=columns,
        frameon=False,
        fontsize=11,
        handlelength=1.0,
        labelcolor=INK,
        columnspacing=1.2,
    )
