"""Planted faults change what they say, are taken back, and are counted by family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from kontext_fast.optimizations.acceleration import apply_plan
from kontext_fast.optimizations.presets import resolve
from kontext_fast.pipeline.device import Machine
from kontext_fast.pipeline.edit import EditRequest, edit_together
from kontext_fast.records.schema import Arm, ArmRole, Output, Record, Score, StoredItem
from research.faults import study
from research.faults.catalogue import FAULTS, HARMLESS_CHANGES, named
from research.faults.planting import HARMLESS, Fault, Pictures, Seen
from tests.pipelines import small_pipeline
from tests.records.builder import record, result


def test_catalogue_has_enough_of_every_family() -> None:
    families = Counter(fault.family for fault in FAULTS)
    assert len(FAULTS) >= 40
    assert set(families) == {
        "timing", "state", "cache key", "precision", "seeds", "rare", "small", "geometric", "codec"
    }  # fmt: skip
    assert min(families.values()) >= 3
    assert len(HARMLESS_CHANGES) == 10
    assert {fault.family for fault in HARMLESS_CHANGES} == {HARMLESS}
    names = [fault.name for fault in (*FAULTS, *HARMLESS_CHANGES)]
    assert len(set(names)) == len(names)
    assert study.BASE in names


STEPS = 3
SEEDS = (3, 4)
INSTRUCTIONS = (
    "make the red circle blue",
    "make the red circle green",
    "remove the star",
    "move the ring to the left",
    "move the ring up",
)


def source_of(index: int) -> Image.Image:
    return Image.new("RGB", (128, 128), (200, 40 * index, 40))


def edits(pipe: object, count: int = len(INSTRUCTIONS), steps: int = STEPS) -> list[np.ndarray]:
    """One call per instruction, with two seeds each."""
    outputs = []
    for index, instruction in enumerate(INSTRUCTIONS[:count]):
        requests = [EditRequest(instruction, source_of(index), steps=steps, seed=seed) for seed in SEEDS]
        outputs += [np.asarray(edit.images[0], np.float32) for edit in edit_together(pipe, requests)]
    return outputs


@pytest.fixture(scope="module")
def pipe() -> object:
    return small_pipeline()


@pytest.fixture(scope="module")
def baseline(pipe: object) -> list[np.ndarray]:
    return edits(pipe)


PIPELINE_FAULTS = [fault for fault in FAULTS if not isinstance(fault.plant, Pictures)]
QUICK = ("prompt key of 12 letters", "overflow clamp", "seed ignored")
HARMLESS_QUICK = ("sums in the opposite order",)


def some_quick(faults: Sequence[Fault], quick: Sequence[str]) -> list[object]:
    return [
        pytest.param(fault, id=fault.name, marks=() if fault.name in quick else pytest.mark.slow) for fault in faults
    ]


def planted(fault: Fault, pipe: object, count: int = len(INSTRUCTIONS), steps: int = STEPS) -> list[np.ndarray]:
    plan = resolve(fault.preset, Machine.detect("cpu"))
    assert plan.applied[0].effect == "numeric"
    acceleration = apply_plan(plan, pipe)
    try:
        return edits(pipe, count, steps)
    finally:
        acceleration.revert()


@pytest.mark.parametrize("fault", some_quick(PIPELINE_FAULTS, QUICK))
def test_fault_changes_outputs_and_is_taken_back(fault: Fault, pipe: object, baseline: list[np.ndarray]) -> None:
    if fault.name == "last steps reuse a velocity":
        outputs, expected = planted(fault, pipe, 1, steps=6), edits(pipe, 1, steps=6)
    else:
        outputs, expected = planted(fault, pipe), baseline
    assert any((output != before).any() for output, before in zip(outputs, expected, strict=True))
    assert all((output == before).all() for output, before in zip(edits(pipe, 1), baseline[:2], strict=True))


@pytest.mark.parametrize("fault", some_quick(HARMLESS_CHANGES, HARMLESS_QUICK))
def test_harmless_change_moves_no_color_by_much(fault: Fault, pipe: object, baseline: list[np.ndarray]) -> None:
    pairs = zip(planted(fault, pipe, 1), baseline[:2], strict=True)
    assert max(float(abs(output - expected).max()) for output, expected in pairs) <= 2


def test_fault_in_pictures_is_the_same_in_a_pipeline(pipe: object, baseline: list[np.ndarray]) -> None:
    for name in ("unedited input, 1 in 10", "picture of another request, 1 in 10"):
        fault = named(name)
        assert isinstance(fault.plant, Pictures)
        seen = Seen()
        sources = [np.asarray(source_of(index // 2), np.float32) for index in range(10)]
        expected = [
            np.asarray(fault.plant.next(Image.fromarray(output.astype(np.uint8)), source, seen), np.float32)
            for output, source in zip(baseline, sources, strict=True)
        ]
        for output, spoiled in zip(planted(fault, pipe), expected, strict=True):
            assert (output == spoiled).all(), name


def test_rare_fault_spoils_one_picture_in_so_many() -> None:
    fault = named("black picture, 1 in 10")
    assert isinstance(fault.plant, Pictures)
    seen, white = Seen(), Image.new("RGB", (8, 8), "white")
    black = [not np.asarray(fault.plant.next(white, np.zeros((8, 8, 3), np.float32), seen)).any() for _ in range(20)]
    assert [index for index, spoiled in enumerate(black) if spoiled] == [9, 19]


def test_fewer_items_are_verified_with_fewer_controls() -> None:
    names = [f"{index:02d}" for index in range(40)]
    items = tuple(StoredItem(id=name, instruction="x", image="0" * 64) for name in names)

    def of_role(role: ArmRole, count: int) -> Record:
        outputs = tuple(Output(item=name, seed=0, image="0" * 64) for name in names[:count])
        scores = tuple(Score(item=name, seed=0, image="0" * 64, metric="psnr", value=9.0) for name in names[:count])
        return record(role, 0, arm=Arm(name=role, role=role), outputs=outputs, scores=scores)

    records = [of_role("baseline", 40), of_role("preset", 40), of_role("floor", 20), of_role("order", 20)]
    fewer = study.first_items(result(records, items), 30)
    assert [item.id for item in fewer.items] == names[:30]
    for of_fewer, count in zip(fewer.records, (30, 30, 16, 16), strict=True):
        assert [output.item for output in of_fewer.outputs] == names[:count]
        assert [score.item for score in of_fewer.scores] == names[:count]


def test_distances_of_every_output_are_kept_by_arm_and_item() -> None:
    def of_arm(name: str, role: ArmRole, values: Sequence[float], metric: str) -> Record:
        scores = tuple(
            Score(item="a", seed=seed, image="0" * 64, metric=metric, value=value) for seed, value in enumerate(values)
        )
        return record(name, 0, arm=Arm(name=name, role=role), scores=scores)

    records = [
        of_arm("baseline", "baseline", [0.5], "latent_error between seeds"),
        of_arm("other precision", "floor", [0.0123456, 0.25], "latent_error"),
        of_arm("overflow clamp", "preset", [0.0, 0.5], "latent_error"),
    ]
    assert study.distances(result(records, ())) == {
        "latent_error": {
            "between seeds": {"a": [0.5]},
            "other precision": {"a": [0.01235, 0.25]},
            "overflow clamp": {"a": [0.0, 0.5]},
        }
    }


def test_rates_count_losses_by_family_and_items() -> None:
    answers = [
        study.Answer("one", "rare", 50, "L3", "", "L2"),
        study.Answer("two", "rare", 50, "L2", "", "L2"),
        study.Answer("one", "rare", 100, "L3", "", "L3"),
        study.Answer("none", HARMLESS, 50, "L1", "", "L1"),
    ]
    assert study.rates(answers) == {
        "rare": {"50": {"n": 2, "loss": 1, "before": 0}, "100": {"n": 1, "loss": 1, "before": 1}},
        HARMLESS: {"50": {"n": 1, "loss": 0, "before": 0}},
    }
