"""Which arms run, and which items share a batch: none is lost, sizes are not mixed, control items stay apart."""

from __future__ import annotations

from itertools import chain

import pytest

from kontext_fast.verify.arms import Batch, arm_specs, fewer_steps, make_batches
from tests.metrics.cases import FreeItem

SIZES = "aabaabbcaa"
ITEMS = [FreeItem(id=f"{index}{size}") for index, size in enumerate(SIZES)]


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


def test_control_items_alone_make_the_same_batches() -> None:
    alone = make_batches(ITEMS[:4], 3, lambda item: item.id[-1], separate=4)
    assert _batches(3, 4)[: len(alone)] == alone


def test_swapped_instructions_differ_from_the_items_own() -> None:
    items = [FreeItem(id=str(index), instruction=text) for index, text in enumerate("aab")]
    specs = arm_specs(["fast"], items, items, steps=4, seeds=2, images_per_call=2)
    (swapped,) = (spec for spec in specs if spec.arm.name == "swapped instructions")
    assert swapped.instructions == ("b", "b", "a")


def test_counts_of_fewer_steps_are_fewer() -> None:
    assert fewer_steps(28) == (21, 14, 10, 7, 4)
    assert fewer_steps(2) == (1,)
    assert fewer_steps(1) == ()
