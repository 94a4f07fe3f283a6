"""The judge's two answers as metrics: right on rendered targets, wrong on rendered defects."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from PIL import Image

from kontext_fast.datasets.shapes import ShapesItem, held_out
from kontext_fast.metrics import judging
from kontext_fast.metrics.base import Case, NotMeasured, Setting, StoredOutput
from kontext_fast.metrics.judge_done import JudgeDone
from kontext_fast.metrics.judge_kept import JudgeKept
from tests.datasets.negative_examples import extra_object

SETTING = Setting(checkpoint="tiny")


def _case(item: ShapesItem, output: Image.Image) -> Case:
    return Case(item, hashlib.sha256(output.tobytes()).hexdigest(), output)


def test_targets_are_done_and_kept_and_the_input_is_not_done() -> None:
    items = held_out(12)
    targets = [_case(item, item.target) for item in items]
    assert JudgeDone(SETTING).scores(targets) == [True] * len(items)
    assert JudgeKept(SETTING).scores(targets) == [True] * len(items)
    assert JudgeDone(SETTING).scores([_case(item, item.image) for item in items]) == [False] * len(items)


def test_something_extra_is_not_kept() -> None:
    items = held_out(12)
    spoiled = [(item, picture) for item in items if (picture := extra_object(item)) is not None]
    assert spoiled
    assert JudgeKept(SETTING).scores([_case(item, picture) for item, picture in spoiled]) == [False] * len(spoiled)


@pytest.mark.parametrize("metric", [JudgeDone, JudgeKept])
def test_only_tiny_is_judged(metric: type[JudgeDone] | type[JudgeKept]) -> None:
    metric(SETTING).prepare()
    with pytest.raises(NotMeasured, match="shapes world"):
        metric(Setting(checkpoint="hub")).prepare()


def test_outputs_judged_ahead_in_other_processes_are_judged_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = held_out(12, 3)
    pictures = [(item, item.target if index % 2 else item.image) for index, item in enumerate(items)]
    expected = JudgeDone(SETTING).scores([_case(item, picture) for item, picture in pictures])
    assert set(expected) == {True, False}
    stored = []
    for item, picture in pictures:
        case = _case(item, picture)
        picture.save(tmp_path / f"{case.digest}.png")
        stored.append(StoredOutput(item, case.digest, tmp_path / f"{case.digest}.png"))
    monkeypatch.setattr(judging, "_seen", {})
    monkeypatch.setattr(judging, "_WORTH_A_PROCESS", 4)
    monkeypatch.setattr(judging, "_processors", lambda: 3)
    JudgeKept(SETTING).look_ahead(stored)
    assert len(judging._seen) == len(items)

    def refusing(*_: object) -> None:
        raise AssertionError("every output was judged ahead")

    monkeypatch.setattr("kontext_fast.datasets.shapes.judge.judge", refusing)
    assert JudgeDone(SETTING).scores([_case(item, picture) for item, picture in pictures]) == expected


def test_a_process_that_cannot_judge_leaves_its_share_to_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = held_out(4, 3)
    stored = []
    for index, item in enumerate(items):
        file = tmp_path / f"{index}.png"
        if index:
            item.target.save(file)
        else:
            file.write_bytes(b"no picture")
        stored.append(StoredOutput(item, str(index), file))
    monkeypatch.setattr(judging, "_seen", {})
    monkeypatch.setattr(judging, "_WORTH_A_PROCESS", 1)
    monkeypatch.setattr(judging, "_processors", lambda: 2)
    judging.look_ahead(stored)
    # The first share holds the broken one.
    assert {digest for _, digest in judging._seen} == {"1", "3"}
