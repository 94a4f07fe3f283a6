"""cache-dit."""

from __future__ import annotations

from itertools import chain
from typing import Final

from kontext_fast.bench.peers.recipes.diffusers import GPU_BASE
from kontext_fast.bench.peers.techniques.cache_dit import CacheDit
from kontext_fast.optimizations.presets import declare_preset

_SOURCE = "https://cache-dit.readthedocs.io/en/latest/user_guide/CACHE_API/"

_COMPUTED_RUNS = (6, 1, 1, 1, 1, 1, 1)
_FREE_RUNS = (1, 3, 3, 3, 3, 3, 0)
TWELVE_OF_28: Final = tuple(
    chain.from_iterable(
        (*(1,) * computed, *(0,) * free) for computed, free in zip(_COMPUTED_RUNS, _FREE_RUNS, strict=True)
    )
)
"""Six steps, then one in four, and the last one: cache-dit's form of a mask (bins) with 12 computed steps."""

CACHE_DIT = declare_preset(
    "peer:cache-dit",
    "`cache_dit.enable_cache(pipe)` as it comes",
    (CacheDit(),),
    optional=GPU_BASE,
    source=_SOURCE,
)

CACHE_DIT_ULTRA = declare_preset(
    "peer:cache-dit-ultra",
    "cache-dit's mask `ultra`, 8 of 28 steps, with TaylorSeer, one block always computed, threshold 0.35",
    (CacheDit(first_blocks=1, threshold=0.35, mask="ultra", taylorseer_order=1),),
    optional=GPU_BASE,
    source="https://cache-dit.readthedocs.io/en/latest/benchmark/HYBRID_CACHE/",
)

CACHE_DIT_12_OF_28 = declare_preset(
    "peer:cache-dit-12-of-28",
    "cache-dit with a static mask of 12 of 28 steps (six, then one in four, and the last one) with TaylorSeer",
    (CacheDit(first_blocks=1, mask=TWELVE_OF_28, policy="static", taylorseer_order=1),),
    optional=GPU_BASE,
    source=_SOURCE,
)
