"""`kontext bench`: measures presets against each other, each run in a process of its own.

Exit codes: 0 all runs ended well or were refused with a reason; 1 a run crashed, timed out or ran out of memory;
2 bad input; 3 nothing could be run on this machine; 130 interrupted.
"""

from __future__ import annotations

import json as json_format
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kontext_fast.cli import options
from kontext_fast.cli.progress import Bar, progress_bar
from kontext_fast.errors import GateFailed, InvalidInput, Refused

if TYPE_CHECKING:
    from kontext_fast.bench.runner import Where
    from kontext_fast.records.schema import Record, ResultFile


def command(
    suite: Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="What to run: quick, or a file.")] = "quick",
    checkpoint: options.Checkpoint = None,
    presets: Annotated[
        str | None, typer.Option(metavar="A,B", help="Presets to run. [default: the suite's]", show_default=False)
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(metavar="WxH,...", help="Output sizes. [default: the suite's]", show_default=False)
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="N,...", help="Step counts. [default: the suite's]", show_default=False)
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="How often every preset runs. [default: the suite's]", show_default=False)
    ] = None,
    items: Annotated[
        int | None, typer.Option(help="Images with instructions. [default: the suite's]", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="New or empty folder. [default: kontext-bench-TIME]", show_default=False)
    ] = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Measure presets against each other; write records that `kontext report` reads."""
    from kontext_fast.bench.runner import run_suite
    from kontext_fast.bench.suites import kind_of, read_suite

    suite_file = read_suite(suite)
    folder = _free_folder(out)
    if checkpoint is None:
        checkpoint, reason = _default_checkpoint(device)
        _say(f"The checkpoint is {checkpoint}, since {reason}.")
    chosen = suite_file.resolve(kind_of(checkpoint)).override(
        presets=_split(presets),
        sizes=_split(sizes),
        steps=_split_steps(steps),
        rounds=rounds,
        items=items,
    )
    command_line = _command_line(
        suite=suite, checkpoint=checkpoint, presets=presets, sizes=sizes, steps=steps, rounds=rounds, items=items
    )
    with progress_bar() as bar:
        result = run_suite(
            chosen,
            folder,
            checkpoint=checkpoint,
            device=device,
            command=command_line,
            on_progress=_Display(bar).show,
        )
    _print_result(result, folder, as_json=json)
    _raise_for_failures(result.records, folder)


def _default_checkpoint(device: str | None) -> tuple[str, str]:
    """Asked in a process of its own: torch must not take memory and threads beside the runs that are measured."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(options.default_checkpoint, device).result()


def _free_folder(out: Path | None) -> Path:
    folder = out or Path(f"kontext-bench-{datetime.now():%Y%m%d-%H%M%S}")
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file; give --out a new or empty folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise InvalidInput(f"{folder} is not empty; give --out a new or empty folder.")
    return folder


def _command_line(**choices: str | int | None) -> str:
    """What to type to measure the same again; the folder and the device are of this machine."""
    words = [word for name, value in choices.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["kontext", "bench", *words])


def _split(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))


def _split_steps(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidInput(f"The step counts {text!r} are not whole numbers; write for example 4,28.") from None


class _Display:
    """A bar where someone can see it, and a line per run where stderr is a file."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._announced = -1

    def show(self, where: Where) -> None:
        run = f"round {where.round + 1}/{where.rounds} {where.preset}"
        if sys.stderr.isatty():
            self._bar.begin(" ".join([run, *_details(where)]), where.runs)
            self._bar.step(where.run, where.runs)
        elif where.run != self._announced:
            self._announced = where.run
            _say(f"run {where.run + 1} of {where.runs}: {run}")


def _details(where: Where) -> list[str]:
    details: list[str] = []
    if (progress := where.progress) is not None:
        details.append(progress.phase)
        if progress.call:
            details.append(f"{progress.call}/{progress.calls}")
        if progress.step:
            details.append(f"step {progress.step}/{progress.steps}")
    if where.left_s is not None:
        details.append(f"{int(where.left_s) // 60}:{int(where.left_s) % 60:02d} left")
    return details


def _print_result(result: ResultFile, folder: Path, *, as_json: bool) -> None:
    runs: list[dict[str, Any]] = [
        record.model_dump(mode="json", include={"run_id", "preset", "round", "status", "reason"})
        for record in result.records
    ]
    if as_json:
        print(json_format.dumps({"folder": str(folder), "suite": result.suite, "runs": runs}))
        return
    for record in result.records:
        if record.status != "ok":
            _say(f"{record.preset}, round {record.round + 1}: {record.status}. {record.reason}")
    print(f"Records are in {folder}; kontext report {shlex.quote(str(folder))} renders them.")


def _raise_for_failures(records: tuple[Record, ...], folder: Path) -> None:
    failed = [record for record in records if record.status not in ("ok", "refused")]
    if failed:
        names = ", ".join(dict.fromkeys(record.preset for record in failed))
        raise GateFailed(f"{len(failed)} of {len(records)} runs failed ({names}); see the reasons in {folder}.")
    if records and all(record.status == "refused" for record in records):
        raise Refused("This machine refused every preset; kontext doctor says what it can run.")


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
