"""Whether the judge of the shapes world finds the edit in the output (`judge_done`), and nothing else changed
(`judge_kept`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from kontext_fast.datasets.shapes import ShapesItem
from kontext_fast.metrics.base import Case, Control, Metric, Need, NotMeasured, Role

if TYPE_CHECKING:
    from kontext_fast.datasets.shapes.judge import Judgement


class ShapesJudge(Metric):
    """Base of a metric that is one answer of the judge."""

    role: ClassVar[Role] = Role.QUALITY
    needs: ClassVar[tuple[Need, ...]] = (Need("a judge", lambda case: isinstance(case.item, ShapesItem), of_item=True),)
    bounded: ClassVar[bool] = True
    parallel: ClassVar[bool] = True

    def prepare(self) -> None:
        if not self.setting.has_judge:
            raise NotMeasured("this checkpoint has not learned the shapes world")

    def notes(self, cases: Sequence[Case]) -> list[str | None]:
        return ["; ".join(judgement(case).reasons) or None for case in cases]


@lru_cache(maxsize=32)
def judgement(case: Case) -> Judgement:
    """What the judge says of a case of the shapes world: once for all metrics that ask, which get the same cases."""
    from kontext_fast.datasets.shapes.judge import judge

    assert isinstance(case.item, ShapesItem)
    return judge(case.output, case.item)


class JudgeDone(ShapesJudge):
    name: ClassVar[str] = "judge_done"
    title: ClassVar[str] = "edit done"
    must_detect: ClassVar[frozenset[Control]] = frozenset({Control.SWAPPED, Control.UNEDITED})

    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        return [judgement(case).done for case in cases]


class JudgeKept(ShapesJudge):
    name: ClassVar[str] = "judge_kept"
    title: ClassVar[str] = "rest kept"
    must_detect: ClassVar[frozenset[Control]] = frozenset({Control.SWAPPED})

    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        return [judgement(case).kept for case in cases]
