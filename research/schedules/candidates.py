"""The candidates of the study of schedules: techniques with their parameters, the most informative ones first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import zip_longest
from typing import Literal

from kontext_fast.bench.peers.recipes.cache_dit import TWELVE_OF_28
from kontext_fast.bench.peers.techniques.cache_dit import CacheDit
from kontext_fast.engine.flops import FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, Flops, request_work, step_work
from kontext_fast.engine.step_reuse import Order
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.techniques.engine import Engine
from kontext_fast.optimizations.techniques.first_block_cache import FirstBlockCache
from kontext_fast.optimizations.techniques.step_reuse import StepReuse
from kontext_fast.records.schema import StepKind

FULL, FEWER, CACHE = "full", "fewer steps", "first_block_cache"
STEPS, CACHE_DIT = "step_reuse", "cache-dit"

FEWER_STEPS = (14, 8, 10, 6, 12, 4, 16, 20, 9, 7, 11, 5, 24, 13, 18, 3, 2, 22, 26, 15, 17, 19, 21)
EVERY = (4, 3, 5, 2, 6, 8)
ORDERS: tuple[Order, ...] = (1, 0)
WARMUPS = (0.0, 0.14)
THRESHOLDS = (0.2, 0.08, 0.3, 0.12)
MASKS: tuple[tuple[str, Literal["ultra"] | tuple[int, ...]], ...] = (("12 of 28", TWELVE_OF_28), ("ultra", "ultra"))


@dataclass(frozen=True)
class Candidate:
    """One way to edit an image."""

    family: str
    name: str
    steps: int
    optimizations: tuple[Optimization, ...]
    of_each_sample: bool = False
    """Whether the computed steps may differ between the samples of a batch."""
    tests_first_block: bool = False
    """Whether the first block runs at skipped steps as well."""

    def identity(self) -> dict[str, object]:
        """Everything that affects its images, JSON-ready."""
        applied = [[optimization.name, optimization.parameters()] for optimization in self.optimizations]
        return {"family": self.family, "name": self.name, "steps": self.steps, "optimizations": applied}


def candidates(steps: int, engine: Engine) -> list[Candidate]:
    """All candidates at `steps` steps: the full run first, then the families in turn."""
    families = (_fewer, _steps, _uncorrected, _caches, _cache_dit)
    turns = zip_longest(*(family(steps, engine) for family in families))
    others = [candidate for turn in turns for candidate in turn if candidate is not None]
    return [Candidate(FULL, f"{steps} steps", steps, (engine,)), *dict.fromkeys(others)]


def work_of(kinds: list[StepKind], *, tests_first_block: bool = False) -> Flops:
    """The work of one full-size image whose steps are of these kinds."""
    return request_work(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, kinds, tests_first_block=tests_first_block)


def full_step() -> float:
    """FLOP of one full step of a full-size edit."""
    return step_work(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, "full").total


def _fewer(steps: int, engine: Engine) -> Iterator[Candidate]:
    for fewer in FEWER_STEPS:
        if fewer < steps:
            yield Candidate(FEWER, f"{fewer} steps", fewer, (engine,))


def _caches(steps: int, _engine: Engine) -> Iterator[Candidate]:
    for threshold in THRESHOLDS:
        cache = FirstBlockCache(threshold=threshold)
        yield Candidate(CACHE, f"threshold {threshold}", steps, (cache,), of_each_sample=True, tests_first_block=True)


def _cache_dit(steps: int, _engine: Engine) -> Iterator[Candidate]:
    """Its masks, where the package is installed."""
    if find_spec("cache_dit") is not None:
        yield from masks(steps)


def masks(steps: int) -> Iterator[Candidate]:
    """cache-dit's masks without a threshold, which would apply to a batch as a whole."""
    for name, mask in MASKS if steps >= 8 else ():
        cache = CacheDit(first_blocks=1, mask=mask, policy="static", taylorseer_order=1)
        yield Candidate(CACHE_DIT, f"mask {name}", steps, (cache,), tests_first_block=True)


def _steps(steps: int, engine: Engine) -> Iterator[Candidate]:
    for every in EVERY:
        for warmup in WARMUPS:
            for order in ORDERS:
                reuse = StepReuse(order=order, computed=every, warmup_share=warmup)
                name = f"order {order}, 1 in {every}" + (f" after {warmup:.0%}" if warmup else "")
                yield Candidate(STEPS, name, steps, (engine, reuse))


def _uncorrected(steps: int, engine: Engine) -> Iterator[Candidate]:
    """The same schedules without the corrector."""
    for every in EVERY[:3]:
        for order in ORDERS:
            reuse = StepReuse(order=order, computed=every, corrector=False)
            yield Candidate(STEPS, f"order {order}, 1 in {every}, uncorrected", steps, (engine, reuse))
