"""Items to fit to, to choose by and to prove with: three parts without a common item."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kontext_fast.datasets.base import Dataset, Item
from kontext_fast.errors import GateFailed, InvalidInput

LEAST_FIT, LEAST_HELD_OUT = 8, 8
"""Items below which nothing is fitted, and nothing claimed."""

_CHOICE_ONE_IN = 5


@dataclass(frozen=True)
class Part:
    """Some items, each with the seed of its noise."""

    items: Sequence[Item]
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class Parts:
    """Disjoint by item and by seed."""

    fit: Part
    choose: Part
    held_out: Part


def split(dataset: Dataset, *, items: int, held_out: int, seed: int = 0) -> Parts:
    """`held_out` items of `dataset`, then `items` others, every fifth of which is for the choice; all of other images.

    Items are in the order of their ids, which are hashes, so the order says nothing. Raises GateFailed where there
    are too few for a claim.
    """
    _require_enough(items, held_out)
    available = _one_per_image(dataset.items, held_out + items)
    if len(available) < held_out + items:
        # What there is, in the proportion that was asked for.
        held_out = max(LEAST_HELD_OUT, len(available) * held_out // (held_out + items))
        items = len(available) - held_out
        if items < LEAST_FIT:
            raise GateFailed(
                f"Cannot tell: {dataset.name} has {len(available)} usable items of different images, and a fit with a "
                f"proof takes at least {LEAST_FIT + LEAST_HELD_OUT}; add some."
            )
    return _parts(available[held_out : held_out + items], available[:held_out], seed)


def _one_per_image(items: Iterable[Item], most: int) -> list[Item]:
    """The first `most` that share no image: a proof on the image of the fit would prove less."""
    chosen: dict[str, Item] = {}
    for item in items:
        chosen.setdefault(hashlib.sha256(item.image.tobytes()).hexdigest(), item)
        if len(chosen) == most:
            break
    return list(chosen.values())


def shapes_parts(*, items: int, held_out: int, seed: int = 0) -> Parts:
    """Of the world of `tiny`: items that it was trained on to fit and choose, and others that no training sees.

    Raises GateFailed where there are too few for a claim.
    """
    from kontext_fast.datasets.shapes.dataset import draw_item
    from kontext_fast.datasets.shapes.dataset import held_out as unseen
    from kontext_fast.datasets.shapes.edits import EDIT_KINDS

    _require_enough(items, held_out)
    seen = [
        draw_item(np.random.default_rng([7, seed, index]), held_out=False, kind=EDIT_KINDS[index % len(EDIT_KINDS)])
        for index in range(items)
    ]
    return _parts(seen, unseen(held_out, seed), seed)


def _parts(tuned: Sequence[Item], held_out: Sequence[Item], seed: int) -> Parts:
    chosen = range(_CHOICE_ONE_IN - 1, len(tuned), _CHOICE_ONE_IN)
    fitted = [index for index in range(len(tuned)) if index not in chosen]
    first = 1_000_000 * (seed + 1)
    return Parts(
        fit=Part([tuned[index] for index in fitted], [first + index for index in fitted]),
        choose=Part([tuned[index] for index in chosen], [first + index for index in chosen]),
        held_out=Part(held_out, [first + 500_000 + index for index in range(len(held_out))]),
    )


def _require_enough(items: int, held_out: int) -> None:
    if items < 1 or held_out < 1:
        raise InvalidInput("The numbers of items have to be 1 or more.")
    if items < LEAST_FIT or held_out < LEAST_HELD_OUT:
        raise GateFailed(
            f"Cannot tell: {items} items to fit to and {held_out} to prove with are too few; use at least {LEAST_FIT} "
            f"and {LEAST_HELD_OUT}, and 64 and 100 for narrow intervals."
        )
