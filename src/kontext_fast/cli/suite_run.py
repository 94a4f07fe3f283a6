"""What the commands that run a suite share: a folder to write to, progress, and what its failures end with."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kontext_fast.cli.progress import Bar
from kontext_fast.errors import GateFailed, InvalidInput, Refused

if TYPE_CHECKING:
    from kontext_fast.bench.runner import SuiteProgress
    from kontext_fast.records.schema import Record


def free_folder(out: Path | None, command: str) -> Path:
    """`out`, or a new name of the form kontext-COMMAND-TIME. Raises InvalidInput if it holds anything."""
    folder = out or Path(f"kontext-{command}-{datetime.now():%Y%m%d-%H%M%S}")
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file; give --out a new or empty folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise InvalidInput(f"{folder} is not empty; give --out a new or empty folder.")
    return folder


class Display:
    """A bar where someone can see it, and a line per run where stderr is a file."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._announced = -1

    def show(self, suite: SuiteProgress) -> None:
        run = f"block {suite.round + 1}/{suite.rounds} {suite.preset}"
        if sys.stderr.isatty():
            self._bar.begin(" ".join([run, *_details(suite)]), suite.runs)
            self._bar.step(suite.run, suite.runs)
        elif suite.run != self._announced:
            self._announced = suite.run
            say(f"run {suite.run + 1} of {suite.runs}: {run}")


def _details(suite: SuiteProgress) -> list[str]:
    details: list[str] = []
    if (progress := suite.progress) is not None:
        details.append(progress.phase)
        if progress.call:
            details.append(f"{progress.call}/{progress.calls}")
        if progress.step:
            details.append(f"step {progress.step}/{progress.steps}")
    if suite.left_s is not None:
        details.append(f"{int(suite.left_s) // 60}:{int(suite.left_s) % 60:02d} left")
    return details


def raise_for_failures(records: tuple[Record, ...], folder: Path) -> None:
    """Raise GateFailed where runs failed, and Refused where this machine could run none of them."""
    records = tuple(record for record in records if record.status != "not measured")
    failed = [record for record in records if record.status not in ("ok", "refused")]
    if failed:
        names = ", ".join(dict.fromkeys(record.preset for record in failed))
        raise GateFailed(f"{len(failed)} of {len(records)} runs failed ({names}); see the reasons in {folder}.")
    if records and all(record.status == "refused" for record in records):
        raise Refused("This machine refused every preset; kontext doctor says what it can run.")


def say(sentence: str) -> None:
    """Progress and remarks go to stderr; stdout is for results."""
    print(sentence, file=sys.stderr)
