"""Paper, ink and letters that the charts of a report share. Figures are made without pyplot: no global state."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which people with any common colour blindness can tell apart.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
GRAY, INK, MUTED, GRID, FAILURE = "#8a8f98", "#1c1d1f", "#5f656e", "#e4e6e9", "#a3330b"

WIDTH_IN, DPI = 12.0, 150
"""At half of its 1800 pixels the smallest letters are still as large as those of a page."""

_ROUND_FACTORS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)

HEAD_IN, FOOT_IN = 1.4, 0.6
_LETTER_IN = 0.105
"""Of the name of a row, with room to spare."""


def new_figure(inches: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_IN, inches), dpi=DPI, facecolor="white")


def png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def heading(figure: Any, top_in: float, title: str, subtitle: str) -> None:
    """Title and origin of a panel whose upper edge is `top_in` inches above the lower edge of the figure."""
    inches = figure.get_figheight()
    figure.text(0.015, (top_in - 0.42) / inches, title, fontsize=16, fontweight="bold", color=INK, parse_math=False)
    figure.text(0.015, (top_in - 0.74) / inches, subtitle, fontsize=11, color=MUTED, parse_math=False)


def panel_axes(figure: Any, top_in: float, height_in: float, *, left: float, right: float) -> Any:
    """Axes of a panel of `height_in` inches; `left` and `right` are fractions of the figure's width."""
    inches = figure.get_figheight()
    bottom = (top_in - height_in + FOOT_IN) / inches
    return figure.add_axes((left, bottom, right - left, (height_in - HEAD_IN - FOOT_IN) / inches))


def bare(axes: Axes, label: str, *, grid: bool = True) -> None:
    """No frame, no ticks on the left: what is in the rows is written beside them."""
    axes.set_yticks([])
    axes.set_xlabel(label, fontsize=11, color=MUTED)
    axes.tick_params(axis="x", labelsize=10.5, colors=MUTED, length=0)
    if grid:
        axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def name_left(names: Iterable[str], least: float) -> float:
    """Where axes begin whose rows have `names`, at `least` or further right, as a fraction of the figure's width."""
    return max(least, (max(map(len, names), default=0) + 1) * _LETTER_IN / WIDTH_IN)


def shortened(text: str, most: int) -> str:
    """`text`, or its beginning and three dots where it has more than `most` letters."""
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."


def row_name(axes: Axes, y: float, name: str) -> None:
    """To the left of the axes."""
    axes.text(
        -0.015,
        y,
        name,
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="center",
        fontsize=12,
        color=INK,
        parse_math=False,
    )


def row_words(axes: Axes, x: float, y: float, words: str, color: str = INK) -> None:
    """To the right of where the drawing of a row ends."""
    axes.annotate(
        words,
        (x, y),
        xytext=(7, 0),
        textcoords="offset points",
        va="center",
        fontsize=11,
        color=color,
        parse_math=False,
    )


def whisker(axes: Axes, y: float, low: float, high: float) -> None:
    axes.plot([low, high], [y, y], color=INK, linewidth=1.6, solid_capstyle="butt")
    axes.plot([low, high], [y, y], "|", color=INK, markersize=9, markeredgewidth=1.6)


def factor_ticks(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis of factors from `low` to `high`, with round numbers that stay apart and 1 among them."""
    kept: list[float] = []
    for tick in sorted(_ROUND_FACTORS, key=lambda tick: abs(math.log(tick))):
        apart = all(abs(math.log(tick / other)) >= 0.08 * math.log(high / low) for other in kept)
        if low <= tick <= high and apart:
            kept.append(tick)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(kept, labels=[f"{tick:g}" for tick in kept])
    axes.set_xticks([], minor=True)


def legend(figure: Any, top_in: float, names: list[tuple[str, str]]) -> None:
    """Names with their colours, below the heading of the first panel."""
    from matplotlib.patches import Patch

    figure.legend(
        handles=[Patch(color=color, label=name) for name, color in names],
        loc="upper left",
        bbox_to_anchor=(0.009, (top_in - 0.82) / figure.get_figheight()),
        borderpad=0.2,
        ncols=len(names),
        frameon=False,
        fontsize=11,
        handlelength=1.0,
        columnspacing=1.2,
    )
