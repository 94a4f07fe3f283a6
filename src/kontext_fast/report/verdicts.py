"""What a verification says of presets, beside what a benchmark measured of them: two files of records, one report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kontext_fast.records.schema import ResultFile
from kontext_fast.records.store import ResultStore


@dataclass(frozen=True)
class PresetVerdict:
    """The verdict on one preset."""

    level: str
    """`L2`, or `cannot tell`."""
    meaning: str
    passes: bool
    reason: str
    checkpoint: str
    items: int

    @property
    def name(self) -> str:
        """`L2 non-inferior`."""
        return self.level if self.level == self.meaning else f"{self.level} {self.meaning}"

    @property
    def where(self) -> str:
        """A verdict holds for the weights on which it was found, which need not be those that were timed."""
        return f"verified on {self.checkpoint}, {self.items} items"


Verdicts = Mapping[str, PresetVerdict]
"""By preset."""


def verdicts(verification: Path) -> Verdicts:
    """Of a folder that `kontext verify` wrote. Raises InvalidInput for records of anything else."""
    return verdicts_of(ResultStore.find(verification).load())


def verdicts_of(result: ResultFile) -> Verdicts:
    # Late, because a report without a verification needs none of the metrics.
    from kontext_fast.verify.analysis import analyze

    checkpoint = next((record.checkpoint.name for record in result.records if record.checkpoint), "unknown weights")
    return {
        one.preset: PresetVerdict(
            level=one.verdict.level.value,
            meaning=one.verdict.level.meaning,
            passes=one.verdict.level.passes,
            reason=one.verdict.reason,
            checkpoint=checkpoint,
            items=len(result.items),
        )
        for one in analyze(result).presets
    }
