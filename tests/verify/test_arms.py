"""Which arms run, how they differ, and which items share a batch: none is lost, control items stay apart."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest

from kontext_fast.optimizations.presets import Preset
from kontext_fast.optimizations.techniques.first_block_cache import FirstBlockCache
from kontext_fast.records.schema import Arm
from kontext_fast.verify import arms
from kontext_fast.verify.arms import ArmSpec, Batch, arm_specs, fewer_steps, make_batches
from kontext_fast.verify.conditions import CONDITIONS
from tests.metrics.cases import FreeItem
from tests.verify.faulty_optimizations import Untouched

SIZES = "aabaabbcaa"
ITEMS = tuple(FreeItem(id=f"{index}{size}", instruction=f"make it {index % 2}") for index, size in enumerate(SIZES))


def _batches(items_per_call: int, separate: int) -> list[Batch]:
    return make_batches(ITEMS, items_per_call, lambda item: item.id[-1], separate=separate)


@pytest.mark.parametrize("separate", [0, 3, 4, 10])
@pytest.mark.parametrize("items_per_call", [1, 2, 3, 64])
def test_every_item_is_in_one_batch_of_one_size(items_per_call: int, separate: int) -> None:
    batches = _batches(items_per_call, separate)
    assert sorted(chain.from_iterable(batches)) == list(range(10))
    assert all(len({SIZES[index] for index in batch}) == 1 and len(batch) <= items_per_call for batch in batches)
    assert all(
        all(index < separate for index in batch) or all(index >= separate for index in batch) for batch in batches
    )


def test_batches_are_as_full_as_possible() -> None:
    assert _batches(64, 4) == [(0, 1), (3,), (2,), (4, 8, 9), (5, 6), (7,)]
    assert _batches(1, 4) == [(index,) for index in range(10)]
    # Two control items of one size are in calls of their own still.
    assert _batches(64, 2)[:2] == [(0,), (1,)]


def test_control_items_alone_make_the_same_batches() -> None:
    alone = make_batches(ITEMS[:4], 3, lambda item: item.id[-1], separate=4)
    assert _batches(3, 4)[: len(alone)] == alone


PRESET = Preset("mine", "made up", (Untouched(),))


def _specs(
    items: int = 6,
    control_items: int = 4,
    *,
    steps: int = 8,
    seeds: int = 2,
    images_per_call: int = 8,
    frontier: bool = False,
) -> list[ArmSpec]:
    return list(
        arm_specs(
            ("fast", PRESET),
            ITEMS[:items],
            ITEMS[:control_items],
            steps=steps,
            seeds=seeds,
            images_per_call=images_per_call,
            frontier=frontier,
        )
    )


def _named(specs: list[ArmSpec], name: str) -> ArmSpec:
    (spec,) = (spec for spec in specs if spec.arm.name == name)
    return spec


def test_every_arm_differs_from_baseline_on_the_control_items_in_what_it_is_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arms, "CONDITION_ITEMS", 3)
    every, few, some = ITEMS[:6], ITEMS[:4], ITEMS[:3]
    steps: list[dict[str, Any]] = [
        {"arm": Arm(name=f"{count} steps", role="steps"), "items": every, "steps": count, "timed": True}
        for count in (6, 4, 3, 2)
    ]
    loose = FirstBlockCache(threshold=4 * FirstBlockCache().threshold)
    expected: list[dict[str, Any]] = [
        {"arm": Arm(name="baseline", role="baseline"), "items": every, "timed": True},
        *_conditions("baseline", "baseline", some),
        {"arm": Arm(name="fast", role="preset"), "items": every, "preset": "fast", "timed": True},
        {"arm": Arm(name="fast, other order", role="order", preset="fast"), "preset": "fast", "reverse_order": True},
        *_conditions("fast", "fast", some),
        {"arm": Arm(name="mine", role="preset"), "items": every, "preset": PRESET, "timed": True},
        {"arm": Arm(name="mine, other order", role="order", preset="mine"), "preset": PRESET, "reverse_order": True},
        *_conditions("mine", PRESET, some),
        *steps,
        {"arm": Arm(name="1 step", role="steps"), "items": every, "steps": 1, "timed": True},
        {"arm": Arm(name="re-run", role="floor"), "timed": True},
        {"arm": Arm(name="other attention backend", role="floor"), "other_attention": True},
        {"arm": Arm(name="other batch position", role="floor"), "items": few[::-1], "images_per_call": 2},
        {"arm": Arm(name="half the steps", role="control"), "steps": 4},
        {"arm": Arm(name="cache threshold x4", role="control"), "preset": (loose,)},
        {"arm": Arm(name="swapped instructions", role="control"), "instructions": ("make it 1", "make it 0") * 2},
        {"arm": Arm(name="other precision", role="floor"), "other_precision": True},
    ]
    common: dict[str, Any] = {"items": few, "separate": 4, "steps": 8, "images_per_call": 8}
    assert _specs(frontier=True) == [ArmSpec(**{**common, **differences}) for differences in expected]
    assert _specs() == [spec for spec in _specs(frontier=True) if spec.arm.role != "steps"]


def _conditions(name: str, preset: str | Preset, items: tuple[FreeItem, ...]) -> list[dict[str, Any]]:
    common = {"items": items, "preset": preset, "images_per_call": 1}
    return [
        {
            "arm": Arm(name=f"{name}, {condition}", role="condition", preset=name, condition=condition),
            "negatives": negatives,
            **common,
        }
        for condition, negatives in zip(CONDITIONS, (None, ("make it 1", "make it 0", "make it 1")), strict=True)
    ]


@pytest.mark.parametrize(
    ("images_per_call", "seeds", "control_items", "half"),
    [(8, 2, 4, 2), (8, 2, 5, 3), (2, 2, 4, 1), (5, 2, 6, 2), (1, 2, 4, 1), (64, 3, 6, 4)],
)
def test_other_position_comes_from_calls_half_as_large_as_those_of_the_controls(
    images_per_call: int, seeds: int, control_items: int, half: int
) -> None:
    specs = _specs(8, control_items, seeds=seeds, images_per_call=images_per_call)
    spec = _named(specs, "other batch position")
    assert (spec.images_per_call, spec.separate) == (half, control_items)
    assert isinstance(spec.images_per_call, int)


@pytest.mark.parametrize(("steps", "half"), [(28, 14), (7, 4), (2, 1), (1, 1)])
def test_half_the_steps_are_at_least_one(steps: int, half: int) -> None:
    assert _named(_specs(steps=steps), "half the steps").steps == half


@pytest.mark.parametrize(("instructions", "swapped"), [("abca", "bcab"), ("aab", "bba"), ("aa", "aa"), ("a", "a")])
def test_swapped_instruction_is_the_next_other_one(instructions: str, swapped: str) -> None:
    items = [FreeItem(id=str(index), instruction=text) for index, text in enumerate(instructions)]
    specs = list(arm_specs(["fast"], items, items, steps=4, seeds=2, images_per_call=2, frontier=False))
    assert _named(specs, "swapped instructions").instructions == tuple(swapped)


def test_counts_of_fewer_steps_are_fewer() -> None:
    assert fewer_steps(28) == (21, 14, 10, 7, 4)
    assert fewer_steps(2) == (1,)
    assert fewer_steps(1) == ()
