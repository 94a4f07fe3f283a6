"""A bar on stderr for work that takes over two seconds, where someone can see it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Timer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_QUIET_S = 2.0


class Bar:
    """Progress of one piece of work after another; shown only once the whole has taken two seconds."""

    def __init__(self) -> None:
        self._description = ""
        self._done = 0
        self._total: int | None = None
        self._lock = Lock()
        self._closed = False
        self._shown: tuple[Progress, TaskID] | None = None
        self._timer = Timer(_QUIET_S, self._show)
        self._timer.daemon = True
        if sys.stderr.isatty():
            self._timer.start()

    def begin(self, description: str, total: int | None = None) -> None:
        """Start the next piece of work; without a `total` only that it runs is shown."""
        with self._lock:
            self._description, self._done, self._total = description, 0, total
            if self._shown is not None:
                progress, task = self._shown
                progress.reset(task, description=description, total=total)

    def step(self, done: int, total: int) -> None:
        """Report `done` of `total` steps."""
        with self._lock:
            self._done, self._total = done, total
            if self._shown is not None:
                progress, task = self._shown
                progress.update(task, completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._shown is not None:
                self._shown[0].stop()

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        with self._lock:
            if self._closed:
                return
            progress = Progress(console=Console(stderr=True), transient=True)
            task = progress.add_task(self._description, total=self._total, completed=self._done)
            self._shown = (progress, task)
            progress.start()


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """A `Bar` that is gone when the context ends."""
    bar = Bar()
    try:
        yield bar
    finally:
        bar.close()
