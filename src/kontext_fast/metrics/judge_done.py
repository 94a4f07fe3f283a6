"""`judge_done`: whether the judge of the shapes world finds the edit in the output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from kontext_fast.metrics.base import Case, Control, Metric, Need, NotMeasured, Role, StoredOutput
from kontext_fast.metrics.judging import judgement, look_ahead


class JudgeDone(Metric):
    name: ClassVar[str] = "judge_done"
    title: ClassVar[str] = "edit done"
    role: ClassVar[Role] = Role.QUALITY
    needs: ClassVar[tuple[Need, ...]] = (Need.JUDGE,)
    sees: ClassVar[frozenset[Control]] = frozenset({Control.SWAPPED, Control.UNEDITED})
    bounded: ClassVar[bool] = True

    def prepare(self) -> None:
        if self.setting.checkpoint != "tiny":
            raise NotMeasured("only tiny has learned the shapes world")

    def look_ahead(self, outputs: Sequence[StoredOutput]) -> None:
        look_ahead(outputs)

    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        return [judgement(case).done for case in cases]
