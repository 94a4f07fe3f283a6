"""What is known of the images of a preset: the verdict of a verification and the judge's acceptance in a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.records.schema import BASELINE
from kontext_fast.report.verification import Verdicts, VerdictSummary
from kontext_fast.stats.intervals import Estimate


@dataclass(frozen=True)
class PresetQuality:
    verdict: VerdictSummary | None
    accepted: Estimate | None
    """Of the edits, by the judge."""
    accepted_by_baseline: Estimate | None
    unknown: str
    """Why nothing is known, where it is not."""

    @property
    def value(self) -> str:
        """The verdict in a few words where there is one, else what the judge accepted."""
        if self.verdict is not None:
            return self.verdict.name
        return f"{fmt.percent(self.accepted.value)} accepted" if self.accepted else fmt.NOT_MEASURED

    @property
    def words(self) -> str:
        """The same for those who do not know the levels of verdicts: `within the margins on tiny`."""
        return self.verdict.words if self.verdict else self.value

    @property
    def basis(self) -> str:
        """What `value` rests on, or why it is unknown."""
        if self.verdict is not None:
            return self.verdict.where
        return self.judged or self.unknown

    @property
    def judged(self) -> str | None:
        """What the judge's acceptance rests on."""
        if self.accepted is None:
            return None
        items = f"of {fmt.count(self.accepted.n, 'item')}, by the judge"
        interval = fmt.percent_range(self.accepted)
        known = f"{items}, 95 % interval {interval}" if interval else items
        baseline = self.accepted_by_baseline
        return f"{known}; baseline {fmt.percent_with_interval(baseline)}" if baseline else known

    def __str__(self) -> str:
        """All that is known, for a cell of a table."""
        known = [f"{self.value} ({self.basis})"] if self.verdict else []
        if self.accepted is not None:
            known.append(f"{fmt.percent_with_interval(self.accepted)} of {fmt.count(self.accepted.n, 'item')} accepted")
        return "; ".join(known) or fmt.NOT_MEASURED


def preset_qualities(group: AnalyzedGroup, verdicts: Verdicts) -> Mapping[str, PresetQuality]:
    """What is known of the images of every preset of the group, by its name."""
    random = group.checkpoint is not None and group.checkpoint.random_weights
    unknown = "the weights are random, so there is no image to judge" if random else "no judge has seen these images"
    baseline = group.row(BASELINE)
    return {
        row.preset: PresetQuality(
            verdict=_verdict_on(row.preset, group, verdicts),
            accepted=row.accepted,
            accepted_by_baseline=baseline.accepted if baseline and row.preset != BASELINE else None,
            unknown=unknown,
        )
        for row in group.rows
    }


def _verdict_on(preset: str, group: AnalyzedGroup, verdicts: Verdicts) -> VerdictSummary | None:
    """None where what was verified by that name is not what was timed."""
    verdict, plan = verdicts.get(preset), group.plans.get(preset)
    return verdict if verdict is not None and (plan is None or verdict.holds_for(plan)) else None
