"""`judge_done`: whether the judge of the shapes world finds the edit in the output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from kontext_fast.metrics.base import Case, Control
from kontext_fast.metrics.shapes_judge import ShapesJudge, judgement


class JudgeDone(ShapesJudge):
    name: ClassVar[str] = "judge_done"
    title: ClassVar[str] = "edit done"
    must_detect: ClassVar[frozenset[Control]] = frozenset({Control.SWAPPED, Control.UNEDITED})

    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        return [judgement(case).done for case in cases]
