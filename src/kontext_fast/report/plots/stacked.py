"""Rows of parts that add up to a whole: where time goes, and what a start costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kontext_fast.analysis import format as fmt
from kontext_fast.report.plots import style
from kontext_fast.stats.intervals import Estimate

ROW_IN = 0.56
NAME_LEFT = 0.18
_MOST_LETTERS = 92
"""Of a reason, so that it ends inside of the picture. The whole is in the table."""
LABEL_SHARE = 0.09
"""Parts narrower than this share of the longest row are not written into; they are in the table."""


@dataclass(frozen=True)
class Part:
    name: str
    seconds: float


@dataclass(frozen=True)
class StackedRow:
    name: str
    parts: tuple[Part, ...]
    whole: Estimate | None
    """Seconds; None where the row was not measured, which `note` explains."""
    note: str | None = None


@dataclass(frozen=True)
class StackedPanel:
    title: str
    subtitle: str
    rows: tuple[StackedRow, ...]


def picture(panels: Sequence[StackedPanel], colors: dict[str, str]) -> bytes:
    """`colors` has one for the name of every part, in the order of the legend."""
    heights = [style.HEAD_IN + style.FOOT_IN + ROW_IN * len(panel.rows) for panel in panels]
    figure = style.new_figure(sum(heights))
    top = sum(heights)
    for panel, height in zip(panels, heights, strict=True):
        style.heading(figure, top, panel.title, panel.subtitle)
        left = style.name_left((row.name for row in panel.rows), NAME_LEFT)
        axes = style.panel_axes(figure, top, height, left=left, right=0.985)
        style.bare(axes, "seconds")
        axes.set_ylim(len(panel.rows) - 0.45, -0.55)
        longest = max((row.whole.value for row in panel.rows if row.whole), default=1.0)
        for y, row in enumerate(panel.rows):
            style.row_name(axes, y, row.name)
            _draw_row(axes, y, row, colors, longest)
        furthest = max((row.whole.interval[1] for row in panel.rows if row.whole and row.whole.interval), default=0.0)
        # Behind bars and whiskers there has to be room for words.
        axes.set_xlim(0, max(1.8 * longest, 1.5 * furthest))
        top -= height
    style.legend(figure, sum(heights), list(colors.items()))
    return style.png(figure)


def _draw_row(axes: object, y: int, row: StackedRow, colors: dict[str, str], longest: float) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    if row.whole is None:
        style.row_words(axes, 0, y, style.shortened(row.note or fmt.NOT_MEASURED, _MOST_LETTERS), style.FAILURE)
        return
    start = 0.0
    for part in row.parts:
        axes.barh(y, part.seconds, left=start, height=0.56, color=colors[part.name], linewidth=0)
        if part.seconds > LABEL_SHARE * longest:
            middle = start + part.seconds / 2
            axes.text(middle, y, fmt.seconds(part.seconds), ha="center", va="center", fontsize=10, color="white")
        start += part.seconds
    end = max(start, row.whole.value)
    if row.whole.interval:
        style.whisker(axes, y + 0.38, *row.whole.interval)
        end = max(end, row.whole.interval[1])
    words = f"{fmt.seconds_estimate(row.whole)}  n={row.whole.n}"
    style.row_words(axes, end, y, f"{words}  {row.note}" if row.note else words)
