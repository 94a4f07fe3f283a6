"""Draws times as bars: presets with their factors beside them, and rows of parts that add up to a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kontext_fast.analysis import format as fmt
from kontext_fast.report.plots import style
from kontext_fast.report.plots.rows import Rows, rows_in
from kontext_fast.report.plots.style import Canvas, Picture, Slot
from kontext_fast.stats.intervals import Estimate

NO_CLAIM_ALPHA = 0.45
"""Of rows from which nothing may be claimed."""


@dataclass(frozen=True)
class SpeedBar:
    """One preset as it is plotted; seconds per call."""

    preset: str
    time: Estimate | None
    processes: tuple[float, ...]
    factor: Estimate | None
    note: str | None
    """Written in place of what is missing: the reason of a failure, or why there is no factor."""
    name: str = ""
    """What is written beside the bar; the preset where it is empty."""
    claims: bool = True
    """Whether anything may be claimed from it."""


@dataclass(frozen=True)
class SpeedPanel:
    """One group of comparable runs."""

    title: str
    subtitle: str
    bars: tuple[SpeedBar, ...]
    finding: str


def speed_picture(headline: str, panels: Sequence[SpeedPanel]) -> Picture:
    """Times on the left, factors against baseline on the right; on a phone the factors stand behind the times."""
    presets = [bar.preset for panel in panels for bar in panel.bars]
    return style.panels_picture(
        headline, panels, lambda panel, canvas: rows_in(len(panel.bars), canvas), _draw_speed, style.who(presets)
    )


def _draw_speed(slot: Slot, panel: SpeedPanel) -> None:
    with_factors = not slot.canvas.narrow
    names = [bar.name or bar.preset for bar in panel.bars]
    times = Rows(slot, names, "seconds per call", right=0.56)
    words = [_time_words(bar, with_factors) for bar in panel.bars]
    times.room_for(
        [
            (max(style.end_of(bar.time.value, bar.time.interval), *bar.processes), said)
            for bar, said in zip(panel.bars, words, strict=True)
            if bar.time
        ],
    )
    for row, (bar, said) in enumerate(zip(panel.bars, words, strict=True)):
        times.name(row, names[row], style.INK if bar.claims else style.MUTED)
        if bar.time is None:
            times.failure(row, bar.note or "")
            continue
        times.bar(row, bar.time.value, style.color_of(bar.preset), alpha=1.0 if bar.claims else NO_CLAIM_ALPHA)
        times.whisker(row, bar.time.interval)
        end = max(style.end_of(bar.time.value, bar.time.interval), *bar.processes)
        times.words(end, row, said, style.INK if bar.claims else style.MUTED)
    for row, bar in enumerate(panel.bars):
        times.hit(row, _speed_tip(bar), bar.preset)
    if with_factors:
        _draw_factors(slot, panel)


def _time_words(bar: SpeedBar, with_factors: bool) -> str:
    if bar.time is None:
        return ""
    factor = f", {fmt.factor(bar.factor)}" if bar.factor and not with_factors else ""
    return fmt.seconds_estimate(bar.time) + factor


def _speed_tip(bar: SpeedBar) -> str:
    name = bar.name or bar.preset
    if bar.time is None:
        return f"{name}: {bar.note or fmt.NOT_MEASURED}"
    factor = f"; {fmt.factor_with_interval(bar.factor)} as fast" if bar.factor else ""
    return f"{name}: {fmt.seconds_with_interval(bar.time)}{factor}; {fmt.n_of(bar.time)}"


def _draw_factors(slot: Slot, panel: SpeedPanel) -> None:
    axes = slot.axes(0.6, 0.985)
    style.clean(axes, "x", x="times as fast as baseline")
    axes.set_yticks([])
    axes.set_ylim(len(panel.bars) - 0.5, -0.5)
    shown = [bar.factor for bar in panel.bars if bar.factor]
    style.factor_scale(
        axes,
        (end for factor in shown for end in (factor.value, *(factor.interval or ()))),
        right=0.8,
        words=[(style.end_of(factor.value, factor.interval), fmt.factor_with_interval(factor)) for factor in shown],
    )
    for row, bar in enumerate(panel.bars):
        if bar.time is None:
            continue
        if bar.factor is None:
            style.row_words(axes, 1.0, row, bar.note or "", style.MUTED, size=10)
            continue
        style.whisker(axes, row, bar.factor.interval)
        alpha = 1.0 if bar.claims else NO_CLAIM_ALPHA
        axes.plot([bar.factor.value], [row], "o", markersize=8, color=style.color_of(bar.preset), alpha=alpha)
        end = style.end_of(bar.factor.value, bar.factor.interval)
        style.row_words(
            axes, end, row, fmt.factor_with_interval(bar.factor), style.INK if bar.claims else style.MUTED, size=10
        )


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
    preset: str = ""


@dataclass(frozen=True)
class StackedPanel:
    title: str
    subtitle: str
    rows: tuple[StackedRow, ...]


def stacked_picture(headline: str, panels: Sequence[StackedPanel], colors: Mapping[str, str]) -> Picture:
    """`colors` has one for the name of every part, in the order of the legend."""

    def draw(slot: Slot, panel: StackedPanel) -> None:
        rows = Rows(slot, [row.name for row in panel.rows], "seconds")
        rows.room_for([(_end(row), _whole_words(row)) for row in panel.rows if row.whole])
        for number, row in enumerate(panel.rows):
            rows.name(number, row.name)
            if row.whole is None:
                rows.failure(number, row.note or fmt.NOT_MEASURED)
            else:
                _draw_parts(rows, number, row, colors)
        for number, row in enumerate(panel.rows):
            rows.hit(number, _stacked_tip(row), row.preset or row.name)

    def height_in(panel: StackedPanel, canvas: Canvas) -> float:
        return rows_in(len(panel.rows), canvas)

    return style.panels_picture(headline, panels, height_in, draw, list(colors.items()))


def _draw_parts(rows: Rows, number: int, row: StackedRow, colors: Mapping[str, str]) -> None:
    assert row.whole is not None
    start = 0.0
    inches_per_second = style.width_in(rows.axes) / rows.axes.get_xlim()[1]
    for part in row.parts:
        rows.bar(number, part.seconds, colors[part.name], left=start)
        words = fmt.seconds(part.seconds)
        # Words that are wider than their part are in the tip and in the table.
        if style.words_in(words, 9.5) + 0.1 < part.seconds * inches_per_second:
            middle = start + part.seconds / 2
            rows.axes.text(
                middle, rows.middle(number), words, ha="center", va="center", fontsize=9.5, color=style.ON_COLOR
            )
        start += part.seconds
    style.whisker(rows.axes, rows.middle(number) + rows.bar_height / 2 + 0.06, _interval(row))
    rows.words(_end(row), number, _whole_words(row))


def _end(row: StackedRow) -> float:
    assert row.whole is not None
    return max(sum(part.seconds for part in row.parts), style.end_of(row.whole.value, _interval(row)))


def _interval(row: StackedRow) -> tuple[float, float] | None:
    return row.whole.interval if row.whole else None


def _whole_words(row: StackedRow) -> str:
    assert row.whole is not None
    words = fmt.seconds_estimate(row.whole) if _interval(row) else fmt.seconds(row.whole.value)
    return f"{words}, {row.note}" if row.note else words


def _stacked_tip(row: StackedRow) -> str:
    if row.whole is None:
        return f"{row.name}: {row.note or fmt.NOT_MEASURED}"
    parts = ", ".join(f"{part.name} {fmt.seconds(part.seconds)}" for part in row.parts)
    note = f"; {row.note}" if row.note else ""
    return f"{row.name}: {fmt.seconds_with_interval(row.whole)}: {parts}{note}; {fmt.n_of(row.whole)}"
