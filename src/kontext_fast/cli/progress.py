"""Progress on stderr: a bar in a terminal once work takes over two seconds, else a line per stage."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Timer
from typing import TYPE_CHECKING

from kontext_fast.cli.output import say

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
        """Start the next piece of work; without a `total` the bar shows only that it runs."""
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
        """Remove the bar."""
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


class StageDisplay:
    """Shows the stages of long work: on the bar in a terminal; where stderr is a file, as a line when one begins."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._stage: object = None

    def show(self, stage: object, line: str, description: str, done: int, total: int) -> None:
        """Show `description` and `done` of `total` on the bar, or `line` where `stage` is another one than before."""
        if sys.stderr.isatty():
            self._bar.begin(description, total)
            self._bar.step(done, total)
        elif stage != self._stage:
            say(line)
        self._stage = stage


def time_left(seconds: float | None) -> str:
    """An estimate as minutes and seconds; empty where there is none."""
    return "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """A `Bar` that is removed when the context ends."""
    bar = Bar()
    try:
        yield bar
    finally:
        bar.close()
