"""What a verification says: its verdicts, for the report of a benchmark, and all that its own page and charts show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kontext_fast.records.schema import (
    BASELINE,
    AppliedOptimization,
    Condition,
    Record,
    ResultFile,
    deciding_images,
)

if TYPE_CHECKING:
    from kontext_fast.verify.analysis import ArmScores, PresetAnalysis, VerificationAnalysis
    from kontext_fast.verify.frontier import Frontier


@dataclass(frozen=True)
class VerificationReport:
    """The records of a verification and what was computed from them, once."""

    result: ResultFile
    analysis: VerificationAnalysis
    arms: ArmScores
    frontier: Frontier | None
    """None for a verification that was not asked for one."""
    newer: tuple[VerificationReport, ...] = ()
    """Later verifications of some of its presets, whose verdicts take the place of its own."""

    @property
    def judged(self) -> dict[str, tuple[PresetAnalysis, VerificationReport]]:
        """By preset, its last verdict and the verification that this is of."""
        return {preset.preset: (preset, of) for of in (self, *self.newer) for preset in of.analysis.presets}

    def record_of(self, preset: str) -> Record:
        """What this verification recorded of its arm of `preset`."""
        return next(record for record in self.result.records if record.arm and record.arm.name == preset)


def build_verification_report(result: ResultFile, newer: tuple[VerificationReport, ...] = ()) -> VerificationReport:
    """`newer` are later verifications, oldest first. Raises InvalidInput for records of anything else."""
    # Late, because a report without a verification needs none of the metrics, which take a second to import.
    from kontext_fast.verify.analysis import ArmScores, analyze
    from kontext_fast.verify.frontier import frontier

    analysis = analyze(result)
    return VerificationReport(result, analysis, ArmScores(result.records), frontier(result, analysis), newer)


_PLAIN = {
    "L0": "bit-identical",
    "L1": "rounding only",
    "L2": "within the margins",
    "L3": "a loss was measured",
    "L4": "not measured",
}
"""A level in words for those who do not know the levels."""
_LOSS_IN: Mapping[Condition, str] = {
    "one by one": "but a loss with one image per call",
    "true CFG": "but a loss with true CFG",
}


@dataclass(frozen=True)
class VerdictSummary:
    """The verdict on one preset as the report of a benchmark shows it."""

    level: str
    """`L2`, or `cannot tell`."""
    meaning: str
    passes: bool
    reason: str
    checkpoint: str
    items: int
    plan: tuple[AppliedOptimization, ...] = ()
    """What was verified; empty where the preset was refused."""
    usual_level: str | None = None
    """Of usual calls, where the loss is in `lost_in` alone."""
    lost_in: Condition | None = None

    def holds_for(self, plan: Iterable[AppliedOptimization]) -> bool:
        """Whether it is one on the techniques that decide images in `plan`, and on the same revisions of them.

        Parameters may differ: random weights, which are timed, have schedules of their own, and machines kernels.
        """
        return not self.plan or _deciding(self.plan) == _deciding(plan)

    @property
    def name(self) -> str:
        """`L2 non-inferior`."""
        return self.level if self.level == self.meaning else f"{self.level} {self.meaning}"

    @property
    def words(self) -> str:
        """`within the margins on tiny`."""
        if self.level == "cannot tell":
            return f"undecided by {self.items} edits of {self.checkpoint}"
        if self.lost_in is not None and self.usual_level is not None:
            return f"{_PLAIN[self.usual_level]} on {self.checkpoint}, {_LOSS_IN[self.lost_in]}"
        return f"{_PLAIN.get(self.level, self.name)} on {self.checkpoint}"

    @property
    def where(self) -> str:
        """A verdict holds for the weights on which it was found, which need not be those that were timed."""
        return f"verified on {self.checkpoint}, {self.items} items"


Verdicts = Mapping[str, VerdictSummary]
"""By preset."""


@dataclass(frozen=True)
class Distances:
    """How far the images of presets lie from those of all steps, as means over the same edits."""

    of_presets: Mapping[str, float]
    """0 is the image that baseline makes."""
    axis: str
    """What is measured, in words for an axis: `relative latent error`."""
    basis: str
    """On what, as a clause: `200 edits of tiny`."""


def distances_of(report: VerificationReport) -> Distances | None:
    """Distances by the first metric of fidelity that is sensitive; None where none was measured."""
    from kontext_fast.metrics.base import Role, discover

    arms, insensitive = report.arms, report.analysis.insensitive
    for metric in discover().values():
        if metric.role is not Role.FIDELITY or metric.name in insensitive or not arms.measured(metric.name):
            continue
        means = {
            record.preset: sum(values) / len(values)
            for record in (*arms.presets, *arms.fewer_steps)
            if (values := [value for by_seed in arms.distances(metric, record.preset).values() for value in by_seed])
        }
        if means:
            checkpoint = next((r.checkpoint.name for r in report.result.records if r.checkpoint), "unknown weights")
            items = len(report.result.items)
            return Distances({BASELINE: 0.0, **means}, metric.title, f"{items} edits of {checkpoint}")
    return None


def verdicts_of(report: VerificationReport) -> Verdicts:
    """The verdicts of a verification, for the report of a benchmark."""
    return {name: _summary(preset, of) for name, (preset, of) in report.judged.items()}


def _summary(preset: PresetAnalysis, of: VerificationReport) -> VerdictSummary:
    verdict, result = preset.verdict, of.result
    return VerdictSummary(
        level=verdict.level.value,
        meaning=verdict.level.meaning,
        passes=verdict.level.passes,
        reason=verdict.reason,
        checkpoint=next((record.checkpoint.name for record in result.records if record.checkpoint), "unknown weights"),
        items=len(result.items),
        plan=of.record_of(preset.preset).plan,
        usual_level=verdict.usual_level.value if verdict.usual_level else None,
        lost_in=verdict.lost_in,
    )


def _deciding(plan: Iterable[AppliedOptimization]) -> frozenset[tuple[str, int]]:
    return frozenset((applied.name, applied.revision) for applied in deciding_images(plan))
