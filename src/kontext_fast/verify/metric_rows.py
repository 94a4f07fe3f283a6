"""A verdict as one row per metric - change, bound, margin, outcome - and how many items would decide it.

Where quality decided, the rows are the changes of the primary metrics and the distances over seed noise; where the
distance to baseline alone decided, they are its ratios to what rounding does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kontext_fast.verify.comparisons import FloorComparison, MarginComparison, Outcome, SeedNoiseComparison
from kontext_fast.verify.margins import Margins
from kontext_fast.verify.verdict import Level, QualityVerdict

COLUMNS = ("metric", "change", "bound", "margin", "items", "outcome")

_OUTCOMES = {
    Outcome.PASSED: "pass",
    Outcome.FAILED: "fail",
    Outcome.UNDECIDED: "too few",
    Outcome.INSENSITIVE: "insensitive",
}


@dataclass(frozen=True)
class MetricRow:
    """One comparison. Numbers are in the unit of the metric, or ratios where the metric's name says so."""

    metric: str
    change: float
    bound: float
    """The end of the change's interval on the side where the margin is."""
    margin: float
    outcome: Outcome
    n: int
    """Items that were compared."""
    needed: int | None = None
    """Items with which a preset without a loss would pass, as far as that is known."""

    @property
    def answer(self) -> str:
        """`pass`, `fail`, `too few` where more items would decide, else `cannot tell`, or `insensitive`."""
        enough = self.needed is not None and self.n >= self.needed
        return "cannot tell" if enough and self.outcome is Outcome.UNDECIDED else _OUTCOMES[self.outcome]

    def cells(self) -> tuple[str, ...]:
        """As `COLUMNS`; a change of a score has its sign."""
        form = ".2f" if self.margin > 0 else "+.3g"
        numbers = (format(value, form) for value in (self.change, self.bound, self.margin))
        return (self.metric, *numbers, str(self.n), self.answer)


def metric_rows(verdict: QualityVerdict, margins: Margins) -> tuple[MetricRow, ...]:
    """What a verdict rests on; empty where it rests on no comparison, as that of equal outputs."""
    if not verdict.losses:
        return tuple(_floor_row(comparison, margins) for comparison in verdict.floor)
    n = max(loss.n for loss in verdict.losses)
    noise = (row for comparison in verdict.seed_noise for row in _noise_rows(comparison, margins, n))
    return (*map(_loss_row, verdict.losses), *noise)


def items_to_decide(verdict: QualityVerdict, rows: Sequence[MetricRow]) -> int | None:
    """How many items to ask for next, in whole tens; None where the verdict is clear, or more would not change it."""
    few = [row for row in rows if row.answer == "too few"]
    if not few or verdict.level is not Level.CANNOT_TELL:
        return None
    # What is needed for seed noise is not known: twice as many halve what the bound has to be away.
    most = max(row.needed or 2 * row.n for row in few)
    return -(-most // 10) * 10


def _loss_row(loss: MarginComparison) -> MetricRow:
    return MetricRow(loss.metric, loss.mean, loss.lower, -loss.margin, loss.outcome, loss.n, loss.needed)


def _noise_rows(noise: SeedNoiseComparison, margins: Margins, n: int) -> tuple[MetricRow, ...]:
    limits = margins.seed_noise
    values = (
        ("median", noise.median, noise.median_upper, limits.median),
        ("p90", noise.p90, noise.p90_upper, limits.p90),
    )
    return tuple(
        MetricRow(
            f"{noise.metric} / seed noise, {place}",
            value,
            upper,
            limit,
            # Each of both has to pass; the comparison as a whole has one outcome.
            Outcome.PASSED if upper < limit and noise.outcome is not Outcome.INSENSITIVE else noise.outcome,
            n,
        )
        for place, value, upper, limit in values
    )


def _floor_row(floor: FloorComparison, margins: Margins) -> MetricRow:
    ratio = max(floor.ratio, floor.median_ratio, key=lambda bounds: bounds.upper)
    fewest = margins.floor.min_items
    needed = 2 * floor.n if floor.n >= fewest else fewest
    name = f"{floor.metric} / rounding"
    return MetricRow(name, ratio.value, ratio.upper, margins.floor.ratio, floor.outcome, floor.n, needed)
