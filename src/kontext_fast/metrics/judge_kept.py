"""`judge_kept`: whether the judge of the shapes world finds that nothing but the edit changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from kontext_fast.metrics.base import Case, Control
from kontext_fast.metrics.shapes_judge import ShapesJudge, judgement


class JudgeKept(ShapesJudge):
    name: ClassVar[str] = "judge_kept"
    title: ClassVar[str] = "rest kept"
    must_detect: ClassVar[frozenset[Control]] = frozenset({Control.SWAPPED})

    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        return [judgement(case).kept for case in cases]
