"""What the study of schedules compares: techniques with their parameters, the most telling ones first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from kontext_fast.engine.dimensions import FLUX_KONTEXT_DEV
from kontext_fast.engine.work import FULL_SIZE_EDIT, Work, request_work, step_work
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.engine import Engine
from kontext_fast.optimizations.first_block_cache import FirstBlockCache
from kontext_fast.optimizations.reference_reuse import ReferenceReuse
from kontext_fast.optimizations.step_reuse import StepReuse
from kontext_fast.records.schema import StepKind

FULL, FEWER, CACHE = "full", "fewer steps", "first_block_cache"
STEPS, REFERENCE, BOTH = "step_reuse", "reference_reuse", "both"

FEWER_STEPS = (14, 8, 10, 6, 4, 20, 12, 24, 7, 9, 16, 5, 18, 3, 11, 13, 2, 22, 26, 15, 17, 19, 21)
EVERY = (2, 3, 4, 5, 7)
WARMUPS = (0.14, 0.07, 0.25)
Refreshed = int | tuple[int, ...]
REFRESHES: tuple[Refreshed, ...] = (7, 4, 10, 2, 28, 14, (0, 1, 3, 9), (0, 2, 6), (0, 4, 14), (0, 3), 3, 5)
"""Tuples are of 28 steps: refreshes that come closer together where more of the image changes."""
REFRESHES_BESIDE_SKIPS: tuple[Refreshed, ...] = (10, 7, 28, 4, 14, (0, 1, 3, 9))
THRESHOLDS = (0.08, 0.2, 0.05, 0.12, 0.3, 0.5)


@dataclass(frozen=True)
class Candidate:
    """One way to make an image."""

    family: str
    name: str
    steps: int
    optimizations: tuple[Optimization, ...]
    of_each_sample: bool = False
    """Whether every sample decides for itself which steps it computes."""

    def identity(self) -> dict[str, object]:
        """All that decides what it makes, JSON-ready."""
        applied = [[one.name, one.parameters()] for one in self.optimizations]
        return {"family": self.family, "name": self.name, "steps": self.steps, "optimizations": applied}


def candidates(steps: int, engine: Engine) -> list[Candidate]:
    """All of them at `steps` steps, the full run first, then one of each family in turn."""
    families = (_fewer, _steps, _references, _both, _caches)
    turns = zip_longest(*(family(steps, engine) for family in families))
    found = [one for turn in turns for one in turn if one is not None]
    return [Candidate(FULL, f"{steps} steps", steps, (engine,)), *dict.fromkeys(found)]


def work_of(kinds: list[StepKind], *, tests_first_block: bool = False) -> Work:
    """Of one full-size image whose steps were of these kinds."""
    return request_work(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, kinds, tests_first_block=tests_first_block)


def full_step() -> float:
    """FLOP of one full step of a full-size edit."""
    return step_work(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, "refresh").total


def _fewer(steps: int, engine: Engine) -> Iterator[Candidate]:
    for fewer in FEWER_STEPS:
        if fewer < steps:
            yield Candidate(FEWER, f"{fewer} steps", fewer, (engine,))


def _caches(steps: int, _engine: Engine) -> Iterator[Candidate]:
    for threshold in THRESHOLDS:
        cache = FirstBlockCache(threshold=threshold)
        yield Candidate(CACHE, f"threshold {threshold}", steps, (cache,), of_each_sample=True)


def _references(steps: int, engine: Engine) -> Iterator[Candidate]:
    for refreshed in REFRESHES:
        if _fits(refreshed, steps):
            reuse = ReferenceReuse(refreshed=refreshed)
            yield Candidate(REFERENCE, f"refreshed {_word(refreshed)}", steps, (engine, reuse))


def _steps(steps: int, engine: Engine) -> Iterator[Candidate]:
    for reuse, words in _step_schedules():
        yield Candidate(STEPS, words, steps, (engine, reuse))


def _both(steps: int, engine: Engine) -> Iterator[Candidate]:
    for refreshed in REFRESHES_BESIDE_SKIPS:
        for reuse, words in _step_schedules():
            if _fits(refreshed, steps) and reuse.order == 1 and reuse.warmup_share != WARMUPS[-1]:
                chosen = (engine, ReferenceReuse(refreshed=refreshed), reuse)
                yield Candidate(BOTH, f"{words}, refreshed {_word(refreshed)}", steps, chosen)


def _step_schedules() -> Iterator[tuple[StepReuse, str]]:
    for warmup in WARMUPS:
        for order in (1, 0):
            for every in EVERY:
                reuse = StepReuse(order=order, computed=every, warmup_share=warmup)
                yield reuse, f"order {order}, 1 in {every} after {warmup:.0%}"


def _fits(refreshed: Refreshed, steps: int) -> bool:
    return refreshed <= steps if isinstance(refreshed, int) else steps == 28


def _word(refreshed: Refreshed) -> str:
    return f"1 in {refreshed}" if isinstance(refreshed, int) else "at " + " ".join(map(str, refreshed))
