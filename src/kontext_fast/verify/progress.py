"""How far a verification is, and how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    arm: str
    done: int
    """Calls of the pipeline, or outputs while they are scored."""
    total: int
    left_s: float | None
    """Estimated from what this process did so far; None before the first call ended."""


OnProgress = Callable[[Progress], None]


class ProgressTracker:
    """Counts calls and guesses how long the rest takes."""

    def __init__(self, total: int, left: int, on_progress: OnProgress) -> None:
        self._total = total
        self._done = total - left
        self._own = 0
        self._started = time.monotonic()
        self._on_progress = on_progress

    def step(self, what: str, count: int = 1) -> None:
        self._done += count
        self._own += count
        self.show(what)

    def skip(self, count: int) -> None:
        """Calls that will not be made."""
        self._total -= count

    def show(self, what: str) -> None:
        left_s = None
        if self._own:
            left_s = (time.monotonic() - self._started) / self._own * (self._total - self._done)
        self._on_progress(Progress(what, self._done, self._total, left_s))
