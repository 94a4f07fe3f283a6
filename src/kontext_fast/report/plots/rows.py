"""Axes of rows: a name, a bar or point, and words per row, from top to bottom; numbers along x."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kontext_fast.report.plots import style
from kontext_fast.report.plots.style import Canvas, Slot
from kontext_fast.report.plots.svg import tip

ROW_IN, PHONE_ROW_IN = 0.36, 0.56
"""Of a row; on a phone its name stands above it."""
_LETTER_IN = 0.092
"""Of the name of a row, with room to spare."""


class Rows:
    """Axes of rows from top to bottom, numbers along x. Names stand beside the rows, on a narrow canvas above them."""

    def __init__(self, slot: Slot, names: Sequence[str], x: str, *, right: float = 0.985, head_in: float = 0.1) -> None:
        self.narrow = slot.canvas.narrow
        width_in = slot.canvas.width_in
        # Whatever a preset of somebody else is called, a quarter of the width stays for its numbers.
        widest = 0.95 if self.narrow else right - 0.25
        self._most = int(widest * width_in / _LETTER_IN) - 2
        left = 0.03 if self.narrow else min(widest, _name_left(names, 0.13, width_in))
        self.axes = slot.axes(left, 0.97 if self.narrow else right, head_in=head_in)
        style.clean(self.axes, "x", x=x)
        self.axes.set_yticks([])
        self.axes.set_ylim(len(names) - 0.5, -0.5)
        self.bar_height = 0.36 if self.narrow else 0.62

    def middle(self, row: float) -> float:
        """The height at which a row's bar lies."""
        return row + 0.24 if self.narrow else row

    def name(self, row: float, words: str, color: str = style.INK, *, bold: bool = False) -> None:
        if self.narrow:
            self._beside(0.0, row - 0.2, _shortened(words, self._most), color=color, ha="left", bold=bold)
        else:
            self._beside(-0.012, row, _shortened(words, self._most), color=color, ha="right", bold=bold)

    def heading(self, row: float, words: str) -> None:
        """Write `words` above the rows that follow, on a narrow canvas."""
        self._beside(0.0, row - 0.2, words, color=style.MUTED, ha="left")

    def note(self, row: float, words: str) -> None:
        """Write `words` at the right edge, on a wide canvas."""
        self._beside(1.0, row, words, color=style.MUTED, ha="right")

    def _beside(self, x: float, row: float, words: str, *, color: str, ha: str, bold: bool = False) -> None:
        self.axes.text(
            x,
            row,
            words,
            transform=self.axes.get_yaxis_transform(),
            ha=ha,
            va="center",
            fontsize=11.5,
            fontweight="bold" if bold else "normal",
            color=color,
            parse_math=False,
        )

    def bar(self, row: float, value: float, color: str, *, left: float = 0.0, alpha: float = 1.0) -> Any:
        (drawn,) = self.axes.barh(
            self.middle(row), value, left=left, height=self.bar_height, color=color, alpha=alpha, linewidth=0
        )
        return drawn

    def whisker(self, row: float, interval: tuple[float, float] | None) -> None:
        style.whisker(self.axes, self.middle(row), interval)

    def words(self, x: float, row: float, words: str, color: str = style.INK, *, bold: bool = False) -> None:
        style.row_words(self.axes, x, self.middle(row), words, color, bold=bold)

    def failure(self, row: float, words: str) -> None:
        most = 50 if self.narrow else 100
        style.row_words(
            self.axes, self.axes.get_xlim()[0], self.middle(row), _shortened(words, most), style.FAILURE, size=10
        )

    def hit(self, row: float, words: str, preset: str = "") -> None:
        """Say `words` wherever the row is pointed at. To be called last, when the axes have their limits."""
        low, high = self.axes.get_xlim()
        self.axes.autoscale(False)
        area = self.axes.fill_between(
            [low, high], row - 0.5, row + 0.5, color=style.INK, alpha=0.0, linewidth=0, zorder=9
        )
        tip(area, words, preset)

    def room_for(self, ends: Iterable[tuple[float, str]]) -> None:
        """Begin the linear x axis at 0 and end it so that behind each end its words fit, however long they are."""
        limit, furthest = 0.0, 0.0
        for end, words in ends:
            share = style.share_of(self.axes, words, gap_in=0.2)
            limit, furthest = max(limit, end / (1 - share)), max(furthest, end)
        self.axes.set_xlim(0, max(limit, 1.02 * furthest) or 1.0)


def rows_in(count: int, canvas: Canvas, wide_in: float = ROW_IN) -> float:
    """Inches of so many rows with their axis."""
    return (PHONE_ROW_IN if canvas.narrow else wide_in) * count + style.FOOT_IN + 0.1


def _name_left(names: Iterable[str], least: float, width_in: float) -> float:
    """Where axes begin whose rows have `names`, at `least` or further right, as a fraction of the figure's width."""
    return max(least, (max(map(len, names), default=0) + 2) * _LETTER_IN / width_in)


def _shortened(text: str, most: int) -> str:
    """`text`, or its beginning and three dots where it has more than `most` letters."""
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."
