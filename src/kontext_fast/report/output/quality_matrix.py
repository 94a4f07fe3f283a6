"""Verdicts at a glance: presets down, metrics across, and in each cell how a preset compares with what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kontext_fast.report.text import quality as words
from kontext_fast.verify.analysis import PresetAnalysis, VerificationAnalysis
from kontext_fast.verify.comparisons import FloorComparison, MarginComparison, Outcome, SeedNoiseComparison
from kontext_fast.verify.verdict import Level


@dataclass(frozen=True)
class MatrixCell:
    value: str
    compared: str
    """What with: the margin, the seed noise, the rounding floor."""
    outcome: Outcome | None
    """None where nothing was decided by this metric."""

    @property
    def chip(self) -> str:
        """The class of its colour."""
        return {Outcome.PASSED: "yes", Outcome.FAILED: "no"}.get(self.outcome, "") if self.outcome else ""


@dataclass(frozen=True)
class MatrixRow:
    preset: str
    level: Level
    reason: str
    cells: tuple[MatrixCell | None, ...]
    """One per metric of the matrix; None where the metric has no part in the verdict."""


@dataclass(frozen=True)
class Matrix:
    metrics: tuple[str, ...]
    rows: tuple[MatrixRow, ...]


def matrix(analysis: VerificationAnalysis) -> Matrix:
    """Of every preset, with the primary metrics first and the distances to baseline after them."""
    verdicts = [preset.verdict for preset in analysis.presets]
    primary = [loss.metric for verdict in verdicts for loss in verdict.losses]
    distances = [floor.metric for verdict in verdicts for floor in verdict.floor]
    metrics = tuple(dict.fromkeys((*primary, *distances)))
    return Matrix(metrics, tuple(_row(preset, metrics) for preset in analysis.presets))


def _row(preset: PresetAnalysis, metrics: Sequence[str]) -> MatrixRow:
    verdict = preset.verdict
    cells = {floor.metric: _of_floor(floor) for floor in verdict.floor}
    cells |= {noise.metric: _of_seed_noise(noise) for noise in verdict.seed_noise}
    cells |= {loss.metric: _of_margin(loss) for loss in verdict.losses}
    return MatrixRow(preset.preset, verdict.level, verdict.reason, tuple(map(cells.get, metrics)))


def _of_margin(loss: MarginComparison) -> MatrixCell:
    return MatrixCell(
        words.change(loss.metric, loss.mean), f"margin {words.change(loss.metric, -loss.margin)}", loss.outcome
    )


def _of_seed_noise(noise: SeedNoiseComparison) -> MatrixCell:
    return MatrixCell(f"{100 * noise.median:.0f} %", "of seed noise", noise.outcome)


def _of_floor(floor: FloorComparison) -> MatrixCell:
    return MatrixCell(words.times(floor.ratio.value), "of the rounding floor", floor.outcome)
