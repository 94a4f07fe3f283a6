"""How long runs take, guessed from those that ended: for the time left, and for what still fits into a budget."""

from __future__ import annotations

from collections.abc import Iterable

from kontext_fast.bench.schedule import Run
from kontext_fast.bench.suites import NATIVE, Tier
from kontext_fast.pipeline.sizes import parse_size

_NATIVE_PIXELS = 1024 * 1024
"""A guess: the parent of a benchmark has not seen the checkpoint."""


class Durations:
    """Seconds that whole processes took, loading included."""

    def __init__(self) -> None:
        self._took: dict[tuple[str, str, Tier], float] = {}

    def add(self, run: Run, seconds: float) -> None:
        self._took[_key(run)] = seconds

    def of(self, run: Run) -> float | None:
        """The run's own time, or that of runs like it scaled by the work they do; None before any run has ended."""
        if _key(run) in self._took:
            return self._took[_key(run)]
        name, cache, _ = _key(run)
        alike = (
            {key: took for key, took in self._took.items() if key[:2] == (name, cache)}
            or {key: took for key, took in self._took.items() if key[2] == run.tier}
            or self._took
        )
        if not alike:
            return None
        return sum(took * _work(run.tier) / _work(tier) for (_, _, tier), took in alike.items()) / len(alike)

    def of_all(self, runs: Iterable[Run]) -> float | None:
        """Seconds for all of `runs`; None where nothing is known yet."""
        times = [self.of(run) for run in runs]
        return None if None in times else sum(time for time in times if time is not None)


def _key(run: Run) -> tuple[str, str, Tier]:
    return run.configuration.name, run.configuration.compile_cache, run.tier


def _work(tier: Tier) -> float:
    """Pixels times steps, summed over the cells: what an edit costs, nearly."""
    return sum(cell.steps * cell.batch * _pixels(cell.size) for cell in tier.cells)


def _pixels(size: str) -> int:
    if size == NATIVE:
        return _NATIVE_PIXELS
    width, height = parse_size(size)
    return width * height
