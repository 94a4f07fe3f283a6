"""Draws times as bars: presets with their factors beside them, and rows of parts that add up to a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kontext_fast.analysis import format as fmt
from kontext_fast.records.names import is_peer
from kontext_fast.records.schema import BASELINE, CONTROL
from kontext_fast.report.plots import style
from kontext_fast.stats.intervals import Estimate

NAME_LEFT = 0.15
"""Least room for names, as a fraction of the width."""
SPEED_HEAD_IN = 1.0
"""Without a legend."""
SPEED_ROW_IN, STACKED_ROW_IN = 0.62, 0.56
LABEL_SHARE = 0.09
"""Parts narrower than this share of the longest row are not written into; they are in the table."""


@dataclass(frozen=True)
class SpeedBar:
    """One preset as it is plotted; seconds per call."""

    preset: str
    time: Estimate | None
    processes: tuple[float, ...]
    factor: Estimate | None
    note: str | None
    """Written in place of what is missing: the reason of a failure, or why there is no factor."""


@dataclass(frozen=True)
class SpeedPanel:
    """One group of comparable runs."""

    title: str
    subtitle: str
    bars: tuple[SpeedBar, ...]
    finding: str


def speed_picture(panels: Sequence[SpeedPanel]) -> bytes:
    """Times on the left, factors against baseline on the right; PNG."""
    return style.draw_panels(
        panels, lambda panel: SPEED_ROW_IN * len(panel.bars) + SPEED_HEAD_IN + style.FOOT_IN, _draw_speed
    )


def _draw_speed(figure: Any, panel: SpeedPanel, top_in: float, height_in: float) -> None:
    left = style.name_left((bar.preset for bar in panel.bars), NAME_LEFT)
    # The factors first, so that the words of a failure, which begin on the left, lie above them.
    factors = style.panel_axes(figure, top_in, height_in, left=0.56, right=0.98, head_in=SPEED_HEAD_IN)
    times = style.panel_axes(figure, top_in, height_in, left=left, right=0.51, head_in=SPEED_HEAD_IN)
    style.rows(times, len(panel.bars), "seconds per call")
    style.rows(factors, len(panel.bars), "times as fast as baseline")
    for y, bar in enumerate(panel.bars):
        style.row_name(times, y, bar.preset)
        if bar.time is None:
            style.row_words(times, 0, y, style.shortened(bar.note or "", 108), style.FAILURE)
            continue
        times.barh(y, bar.time.value, height=0.52, color=_color(bar.preset), alpha=0.85, linewidth=0)
        style.whisker(times, y, bar.time.interval)
        times.plot(bar.processes, [y] * len(bar.processes), "o", markersize=4, mfc="white", mec=style.INK, mew=0.8)
        end = max(style.end_of(bar.time.value, bar.time.interval), *bar.processes)
        style.row_words(times, end, y, f"{fmt.seconds_estimate(bar.time)}  n={bar.time.n}")
        if bar.factor is None:
            style.row_words(factors, 1.0, y, bar.note or "", style.MUTED)
            continue
        style.whisker(factors, y, bar.factor.interval)
        factors.plot([bar.factor.value], [y], "o", markersize=10, color=_color(bar.preset))
        end = style.end_of(bar.factor.value, bar.factor.interval)
        style.row_words(factors, end, y, fmt.factor_with_interval(bar.factor))
    measured = [bar for bar in panel.bars if bar.time]
    longest = max(max(style.end_of(bar.time.value, bar.time.interval), *bar.processes) for bar in measured if bar.time)
    times.set_xlim(0, longest * 1.42)
    shown = [bar.factor for bar in measured if bar.factor]
    style.factor_scale(
        factors, (end for factor in shown for end in (factor.value, *(factor.interval or ()))), right=0.95
    )


def _color(preset: str) -> str:
    if preset in (BASELINE, CONTROL):
        return style.BASELINE_COLOR
    return style.PEER_COLOR if is_peer(preset) else style.PRESET_COLOR


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


def stacked_picture(panels: Sequence[StackedPanel], colors: Mapping[str, str]) -> bytes:
    """`colors` has one for the name of every part, in the order of the legend; PNG."""

    def draw(figure: Any, panel: StackedPanel, top_in: float, height_in: float) -> None:
        left = style.name_left((row.name for row in panel.rows), NAME_LEFT)
        axes = style.panel_axes(figure, top_in, height_in, left=left, right=0.985)
        style.rows(axes, len(panel.rows), "seconds")
        wholes = [row.whole for row in panel.rows if row.whole]
        longest = max((whole.value for whole in wholes), default=1.0)
        furthest = max((whole.interval[1] for whole in wholes if whole.interval), default=0.0)
        for y, row in enumerate(panel.rows):
            style.row_name(axes, y, row.name)
            _draw_parts(axes, y, row, colors, longest)
        # Behind bars and whiskers there has to be room for words.
        axes.set_xlim(0, max(1.8 * longest, 1.5 * furthest))

    def height_in(panel: StackedPanel) -> float:
        return style.HEAD_IN + style.FOOT_IN + STACKED_ROW_IN * len(panel.rows)

    return style.draw_panels(panels, height_in, draw, list(colors.items()))


def _draw_parts(axes: Any, y: int, row: StackedRow, colors: Mapping[str, str], longest: float) -> None:
    if row.whole is None:
        style.row_words(axes, 0, y, style.shortened(row.note or fmt.NOT_MEASURED, 92), style.FAILURE)
        return
    start = 0.0
    for part in row.parts:
        axes.barh(y, part.seconds, left=start, height=0.56, color=colors[part.name], linewidth=0)
        if part.seconds > LABEL_SHARE * longest:
            middle = start + part.seconds / 2
            axes.text(middle, y, fmt.seconds(part.seconds), ha="center", va="center", fontsize=10, color="white")
        start += part.seconds
    style.whisker(axes, y + 0.38, row.whole.interval)
    words = f"{fmt.seconds_estimate(row.whole)}  n={row.whole.n}"
    end = max(start, style.end_of(row.whole.value, row.whole.interval))
    style.row_words(axes, end, y, f"{words}  {row.note}" if row.note else words)
