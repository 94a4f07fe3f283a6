"""Which items share a call: none is lost, sizes are not mixed, and control items keep to themselves."""

from __future__ import annotations

from itertools import chain

import pytest

from kontext_fast.verify.batching import calls_of
from tests.metrics.cases import FreeItem

SIZES = "aabaabbcaa"
ITEMS = [FreeItem(id=f"{index}{size}") for index, size in enumerate(SIZES)]


def _calls(per_call: int, apart: int) -> list[tuple[int, ...]]:
    return calls_of(ITEMS, per_call, lambda item: item.id[-1], apart=apart, in_calls=2)


@pytest.mark.parametrize("apart", [0, 3, 4, 10])
@pytest.mark.parametrize("per_call", [1, 2, 3, 64])
def test_every_item_is_in_one_call_with_its_like(per_call: int, apart: int) -> None:
    calls = _calls(per_call, apart)
    assert sorted(chain.from_iterable(calls)) == list(range(10))
    assert all(len({SIZES[index] for index in call}) == 1 and len(call) <= per_call for call in calls)
    assert all(all(index < apart for index in call) or all(index >= apart for index in call) for call in calls)


def test_calls_are_as_full_as_they_may_be() -> None:
    assert _calls(64, 4) == [(0, 1), (3,), (2,), (4, 8, 9), (5, 6), (7,)]
    assert _calls(1, 4) == [(index,) for index in range(10)]


def test_control_items_alone_make_the_same_calls_as_among_others() -> None:
    alone = calls_of(ITEMS[:4], 3, lambda item: item.id[-1], apart=4, in_calls=2)
    assert _calls(3, 4)[: len(alone)] == alone
