"""The judge's two answers as metrics: right on rendered targets, wrong on rendered defects."""

from __future__ import annotations

import pytest
from PIL import Image

from kontext_fast.datasets.shapes import ShapesItem, held_out
from kontext_fast.metrics.base import Case, NotMeasured, Setting
from kontext_fast.metrics.shapes_judge import JudgeDone, JudgeKept
from tests.datasets.negative_examples import extra_object

SETTING = Setting(has_judge=True)


def _case(item: ShapesItem, output: Image.Image) -> Case:
    return Case(item, output)


def test_targets_are_accepted_and_inputs_are_not_done() -> None:
    items = held_out(12)
    targets = [_case(item, item.target) for item in items]
    assert JudgeDone(SETTING).scores(targets) == [True] * len(items)
    assert JudgeKept(SETTING).scores(targets) == [True] * len(items)
    assert JudgeDone(SETTING).scores([_case(item, item.image) for item in items]) == [False] * len(items)


def test_extra_shape_is_not_kept() -> None:
    items = held_out(12)
    spoiled = [(item, picture) for item in items if (picture := extra_object(item)) is not None]
    assert spoiled
    assert JudgeKept(SETTING).scores([_case(item, picture) for item, picture in spoiled]) == [False] * len(spoiled)


@pytest.mark.parametrize("metric", [JudgeDone, JudgeKept])
def test_checkpoint_without_a_judge_is_not_measured(metric: type[JudgeDone] | type[JudgeKept]) -> None:
    metric(SETTING).prepare()
    with pytest.raises(NotMeasured, match="shapes world"):
        metric(Setting()).prepare()
