"""The one palette and style of all charts. Figures are made without pyplot, so that no global state is touched."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which people with any common colour blindness can tell apart.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = COLORS
GRAY, INK, MUTED, GRID, FAILURE = "#8a8f98", "#1c1d1f", "#5f656e", "#e4e6e9", "#a3330b"
BASELINE_COLOR, PRESET_COLOR, PEER_COLOR = GRAY, BLUE, ORANGE

WIDTH_IN, DPI = 12.0, 150
"""At half of its 1800 pixels the smallest letters are still as large as those of a page."""
HEAD_IN, FOOT_IN = 1.4, 0.6
"""Above the axes of a panel, with room for a legend, and below them."""
DASHED = (0, (4, 3))

_ROUND_FACTORS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
_LETTER_IN = 0.105
"""Of the name of a row, with room to spare."""


def new_figure(inches: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_IN, inches), dpi=DPI, facecolor="white")


def png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


class Titled(Protocol):
    @property
    def title(self) -> str: ...

    @property
    def subtitle(self) -> str: ...


AnyPanel = TypeVar("AnyPanel", bound=Titled)


def draw_panels(
    panels: Sequence[AnyPanel],
    height_in: Callable[[AnyPanel], float],
    draw: Callable[[Any, AnyPanel, float, float], None],
    names: Sequence[tuple[str, str]] = (),
) -> bytes:
    """One panel below the other, each with its heading, and a legend of `names` with their colours; PNG.

    `draw(figure, panel, top_in, height_in)` adds the axes; `top_in` is the height of the panel's upper edge above the
    lower edge of the figure.
    """
    heights = [height_in(panel) for panel in panels]
    figure, top = new_figure(sum(heights)), sum(heights)
    for panel, height in zip(panels, heights, strict=True):
        _text(figure, top - 0.42, panel.title, fontsize=16, fontweight="bold", color=INK)
        _text(figure, top - 0.74, panel.subtitle, fontsize=11, color=MUTED)
        draw(figure, panel, top, height)
        top -= height
    if names:
        _legend(figure, names)
    return png(figure)


def panel_axes(
    figure: Any, top_in: float, height_in: float, *, left: float, right: float, head_in: float = HEAD_IN
) -> Any:
    """Axes of a panel of `height_in` inches; `left` and `right` are fractions of the figure's width."""
    inches = figure.get_figheight()
    bottom = (top_in - height_in + FOOT_IN) / inches
    place = (left, bottom, right - left, (height_in - head_in - FOOT_IN) / inches)
    return figure.add_axes(place, facecolor="none")


def clean(axes: Axes, grid: Literal["x", "y", "both"], *, x: str = "", y: str = "") -> None:
    """No frame and no tick marks; a grid along the axes that carry numbers, which are called `x` and `y`."""
    axes.set_xlabel(x, fontsize=11, color=MUTED)
    axes.set_ylabel(y, fontsize=11, color=MUTED)
    axes.tick_params(which="both", labelsize=10.5, colors=MUTED, length=0)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def rows(axes: Axes, count: float, x: str) -> None:
    """Clean axes of `count` rows from top to bottom, whose names are written beside them; numbers are along `x`."""
    clean(axes, "x", x=x)
    axes.set_yticks([])
    axes.set_ylim(count - 0.42, -0.58)


def name_left(names: Iterable[str], least: float) -> float:
    """Where axes begin whose rows have `names`, at `least` or further right, as a fraction of the figure's width."""
    return max(least, (max(map(len, names), default=0) + 1) * _LETTER_IN / WIDTH_IN)


def shortened(text: str, most: int) -> str:
    """`text`, or its beginning and three dots where it has more than `most` letters."""
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."


def row_name(axes: Axes, y: float, name: str, color: str = INK) -> None:
    """To the left of the axes."""
    place = axes.get_yaxis_transform()
    axes.text(-0.015, y, name, transform=place, ha="right", va="center", fontsize=12, color=color, parse_math=False)


def row_words(axes: Axes, x: float, y: float, words: str, color: str = INK, *, size: float = 11, down: int = 0) -> None:
    """To the right of where the drawing of a row ends, `down` points lower; a failure covers what is below it."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1} if color == FAILURE else None
    axes.annotate(
        words,
        (x, y),
        xytext=(8, -down),
        textcoords="offset points",
        va="center",
        fontsize=size,
        color=color,
        bbox=box,
        parse_math=False,
    )


def whisker(axes: Axes, y: float, interval: tuple[float, float] | None) -> None:
    """An interval along x; nothing where there is none."""
    if interval is not None and interval[0] != interval[1]:
        axes.plot(interval, [y, y], color=INK, linewidth=1.6, solid_capstyle="butt")
        axes.plot(interval, [y, y], "|", color=INK, markersize=9, markeredgewidth=1.6)


def end_of(value: float, interval: tuple[float, float] | None) -> float:
    """Where the drawing of a value with its interval ends, and its words begin."""
    return max(value, *(interval or (value,)))


def factor_scale(axes: Axes, factors: Iterable[float], *, right: float) -> None:
    """A logarithmic axis on which 2x and 0.5x are equally far from 1, with room for words: `right` times its span."""
    ends = [1.0, *factors]
    span = max(math.log(max(ends) / min(ends)), math.log(1.3))
    low, high = min(ends) * math.exp(-0.1 * span), max(ends) * math.exp(right * span)
    kept: list[float] = []
    for tick in sorted(_ROUND_FACTORS, key=lambda tick: abs(math.log(tick))):
        apart = all(abs(math.log(tick / other)) >= 0.08 * math.log(high / low) for other in kept)
        if low <= tick <= high and apart:
            kept.append(tick)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(kept, labels=[f"{tick:g}" for tick in kept])
    axes.set_xticks([], minor=True)
    axes.axvline(1, color=INK, linewidth=1.2, linestyle=DASHED, zorder=1)


def _text(figure: Any, y_in: float, text: str, **style: Any) -> None:
    figure.text(0.015, y_in / figure.get_figheight(), text, parse_math=False, **style)


def _legend(figure: Any, names: Sequence[tuple[str, str]]) -> None:
    """Below the heading of the first panel."""
    from matplotlib.patches import Patch

    inches = figure.get_figheight()
    figure.legend(
        handles=[Patch(color=color, label=name) for name, color in names],
        loc="upper left",
        bbox_to_anchor=(0.009, (inches - 0.82) / inches),
        borderpad=0.2,
        ncols=len(names),
        frameon=False,
        fontsize=11,
        handlelength=1.0,
        columnspacing=1.2,
    )
