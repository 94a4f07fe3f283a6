"""Where commands write: results to stdout, remarks and progress to stderr, files to a folder that is new or empty.
What became of images is printed one by one.

Progress is a bar in a terminal once work takes over two seconds, else a line per stage.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from threading import Lock, Timer
from typing import TYPE_CHECKING, Any, Protocol

from kontext_fast.errors import Cancelled, InvalidInput, KontextError, Refused

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def say(sentence: str) -> None:
    """Print a remark to stderr, since stdout is for results."""
    print(sentence, file=sys.stderr)


def print_json(result: object) -> None:
    """Print the result as one line, which has to be the last one on stdout. JSON has no number that is not finite, such
    as the bound of a value that nothing bounds: it is null.
    """
    print(json.dumps(_finite(result), allow_nan=False))


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def tick(is_well: bool, line: str) -> None:
    """Print `line` to stdout with a green tick or a red cross before it; NO_COLOR takes the color off."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    signs = ("\u2713", "\u2717") if console.encoding.startswith("utf") else ("+", "-")
    mark = Text(signs[0], "green") if is_well else Text(signs[1], "red")
    console.print(mark.append(f" {line}", "default"), soft_wrap=True)


def result_folder(out: Path | None, command: str, *, resume: bool = False) -> Path:
    """`out`, or a new name of the form kontext-COMMAND-TIME.

    Raises InvalidInput if the folder holds anything, but for `resume`, which needs an `out`, and if another process
    writes into it.
    """
    # Late: records need pydantic, which a command's help does not wait for.
    from kontext_fast.records.lock import LOCK_NAMES, check_unlocked
    from kontext_fast.records.store import require_folder_for

    if resume and out is None:
        raise InvalidInput("--resume needs the folder to continue in; add --out.")
    folder = out or Path(f"kontext-{command}-{datetime.now():%Y%m%d-%H%M%S}")
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file; give --out a new or empty folder.")
    check_unlocked(folder)
    if resume:
        return folder
    if folder.is_dir() and any(file.name not in LOCK_NAMES for file in folder.iterdir()):
        raise InvalidInput(f"{folder} is not empty; give --out a new or empty folder.")
    require_folder_for(folder)
    return folder


def command_line(command: str, options: Mapping[str, str | float | bool | None]) -> str:
    """What to type to run `command` again; an option that is None or False is left out, one that is True is a flag."""
    words = ["kontext", command]
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{name}")
        if value is not True:
            words.append(value if isinstance(value, str) else f"{value:g}")
    return shlex.join(words)


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

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Off the screen while the context prints lines, which a live bar would write over."""
        with self._lock:
            if self._shown is not None:
                self._shown[0].stop()
            try:
                yield
            finally:
                sys.stdout.flush()
                if self._shown is not None and not self._closed:
                    self._shown[0].start()

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
            # Results go to stdout, which may be a file, and never through the console of the bar.
            progress = Progress(
                console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
            )
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


class NamedJob(Protocol):
    """A job as its outcome needs it."""

    @property
    def name(self) -> str:
        """What messages call it."""


class Outcome:
    """What became of jobs so far: the facts of the images made, and why others were not; each is printed at once."""

    def __init__(self, total: int, *, quiet: bool, as_json: bool) -> None:
        self.images: list[dict[str, Any]] = []
        self._failed: list[tuple[str, KontextError]] = []
        self._total, self._quiet, self._as_json = total, quiet, as_json
        self._begin = time.perf_counter()

    @property
    def failed(self) -> list[dict[str, str]]:
        """What `--json` says of inputs without an image."""
        return [{"input": name, "reason": str(error)} for name, error in self._failed]

    def printer(self, preset: str, bar: Bar) -> Callable[[NamedJob, dict[str, Any] | KontextError], None]:
        """What adds an outcome while `bar` is hidden."""

        def add(job: NamedJob, outcome: dict[str, Any] | KontextError) -> None:
            with bar.hidden():
                self.add(job, outcome, preset=preset)

        return add

    def add(self, job: NamedJob, outcome: dict[str, Any] | KontextError, *, preset: str) -> None:
        """Take and print the outcome of a job."""
        if isinstance(outcome, KontextError):
            self.add_failure(job.name, outcome)
            return
        self.images.append(outcome)
        if self._quiet and not self._as_json:
            print(outcome["path"])
        elif not self._as_json:
            print("  ".join(filter(None, (self._place(), _line(outcome, preset)))))

    def add_failure(self, name: str, error: KontextError) -> None:
        """Take and print that of `name` no image was made; a single one is left to `raise_failures`."""
        self._failed.append((name, error))
        if self._total > 1:
            say(f"{self._place()}  {error}")

    def remark(self, sentences: Iterable[str]) -> None:
        """Tell a person something, unless only results are wanted."""
        if not (self._quiet or self._as_json):
            for sentence in sentences:
                say(sentence)

    def _place(self) -> str:
        return f"{len(self.images) + len(self._failed)} of {self._total}" if self._total > 1 else ""

    def say_summary(self, skipped: Sequence[str], remarks: Iterable[str]) -> None:
        """Tell a person what was planned, what it took and what was skipped."""
        seconds = time.perf_counter() - self._begin
        for sentence in _first_sizes(image["size"]["explanation"] for image in self.images):
            say(sentence)
        for caution in dict.fromkeys(caution for image in self.images for caution in image["cautions"]):
            say(f"Note: {caution}")
        parts = []
        if len(self.images) > 1:
            parts.append(f"{len(self.images)} images in {seconds:.1f} s, {seconds / len(self.images):.2f} s each")
        if skipped:
            parts.append(f"{len(skipped)} were there already and are skipped")
        if parts:
            say(f"{'; '.join(parts)}.")
        for sentence in remarks:
            say(sentence)

    def raise_failures(self) -> None:
        """Raise the error of a single job, or one that counts those of several."""
        if not self._failed:
            return
        errors = [error for _, error in self._failed]
        if self._total == 1:
            raise errors[0]
        count = f"{len(errors)} of {self._total} images were not made"
        if all(isinstance(error, Refused) for error in errors):
            raise Refused(f"{count}; see above what this machine lacks.")
        raise InvalidInput(f"{count}; mend what is named above, and run the same command again.")

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise Cancelled on Ctrl-C once there are images."""
        try:
            yield
        except KeyboardInterrupt:
            if not self.images:
                raise
            raise Cancelled(
                f"Interrupted after {len(self.images)} of {self._total} images; the same command goes on with the rest."
            ) from None


def _line(facts: dict[str, Any], preset: str) -> str:
    """`cat.edited.png  1024x1024  2.34 s  (fast, 11 of 28 steps, seed 7)`."""
    kinds = facts["step_kinds"]
    computed = sum(kind == "full" for kind in kinds)
    every = f"{len(kinds)} steps" if len(kinds) != 1 else "1 step"
    steps = every if computed == len(kinds) else f"{computed} of {every}"
    size = f"{facts['size']['width']}x{facts['size']['height']}"
    return f"{facts['path']}  {size}  {facts['seconds']:.2f} s  ({preset}, {steps}, seed {facts['seed']})"


def _first_sizes(sentences: Iterable[str]) -> list[str]:
    """The first three different explanations of a size: a folder of many sizes would say as many."""
    distinct = list(dict.fromkeys(sentences))
    rest = len(distinct) - 3
    return [*distinct[:3], *([f"{rest} other sizes were planned in the same way."] if rest > 0 else [])]
