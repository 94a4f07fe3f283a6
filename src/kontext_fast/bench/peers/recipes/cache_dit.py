"""cache-dit."""

from __future__ import annotations

from itertools import chain
from typing import Final

from kontext_fast.bench.peers.common_stack import GPU_BASE
from kontext_fast.bench.peers.peer import Peer
from kontext_fast.bench.peers.techniques.cache_dit import CacheDit

_SOURCE = "https://cache-dit.readthedocs.io/en/latest/user_guide/CACHE_API/"

_COMPUTED_RUNS = (6, 1, 1, 1, 1, 1, 1)
_FREE_RUNS = (1, 3, 3, 3, 3, 3, 0)
TWELVE_OF_28: Final = tuple(
    chain.from_iterable(
        (*(1,) * computed, *(0,) * free) for computed, free in zip(_COMPUTED_RUNS, _FREE_RUNS, strict=True)
    )
)
"""Six steps, then one in four, and the last one: cache-dit's form of a mask (bins) with 12 computed steps."""

CACHE_DIT = Peer(
    name="cache-dit",
    summary="cache-dit as `enable_cache(pipe)` leaves it",
    source=_SOURCE,
    needs=(CacheDit(),),
    where_possible=GPU_BASE,
)

CACHE_DIT_ULTRA = Peer(
    name="cache-dit-ultra",
    summary="cache-dit's mask ultra (8 of 28 steps) with TaylorSeer",
    source="https://cache-dit.readthedocs.io/en/latest/benchmark/HYBRID_CACHE/",
    needs=(CacheDit(first_blocks=1, threshold=0.35, mask="ultra", taylorseer_order=1),),
    where_possible=GPU_BASE,
)

CACHE_DIT_12_OF_28 = Peer(
    name="cache-dit-12-of-28",
    summary="cache-dit with a static mask of 12 of 28 steps and TaylorSeer",
    source=_SOURCE,
    needs=(CacheDit(first_blocks=1, mask=TWELVE_OF_28, policy="static", taylorseer_order=1),),
    where_possible=GPU_BASE,
)
