"""Which items of an arm are made in one call of the pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

from kontext_fast.datasets.base import Item


def calls_of(
    items: Sequence[Item], per_call: int, size_of: Callable[[Item], Hashable], *, apart: int, in_calls: int
) -> list[tuple[int, ...]]:
    """Positions of `items`, call by call: items of one size, at most `per_call` of them, none left out.

    The first `apart` items share no call with later ones, and make `in_calls` calls at least. What is in a call depends
    on `items` alone and not on what was made before, so that a verification which was interrupted goes on with the
    same calls.
    """
    fewer = min(per_call, max(1, math.ceil(apart / in_calls)))
    found: list[tuple[int, ...]] = []
    for block, most in ((range(apart), fewer), (range(apart, len(items)), per_call)):
        by_size: dict[Hashable, list[int]] = {}
        for index in block:
            # Asking for the size may open a picture.
            by_size.setdefault(size_of(items[index]) if most > 1 else None, []).append(index)
        for of_size in by_size.values():
            found += [tuple(of_size[start : start + most]) for start in range(0, len(of_size), most)]
    return found
