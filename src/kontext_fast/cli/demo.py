"""`kontext demo`: edits, measures, judges and reports on `tiny`, with no GPU, token or network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kontext_fast.cli.bench import raise_for_failures, suite_display
from kontext_fast.cli.command_class import Group
from kontext_fast.cli.options import Json
from kontext_fast.cli.output import print_json, progress_bar, result_folder

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console

    from kontext_fast.records.store import ResultStore
    from kontext_fast.report.gallery import GalleryItem
    from kontext_fast.report.model import GroupReport

GROUP = Group.START

_PICTURE = 24
"""Width and height of a picture in a terminal, of which three stand side by side in 80 columns."""
_BAR = 15
_BLOCK = "\u2588"
_COLORS = {"faster": "green", "slower": "red"}


def command(
    out: Annotated[
        Path | None, typer.Option(help="New or empty folder. [default: kontext-demo-TIME]", show_default=False)
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Measure the suite quick instead: five minutes.")] = False,
    pictures: Annotated[
        bool | None,
        typer.Option(
            "--pictures/--no-pictures", help="Show the edit. [default: in a terminal with colors]", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """An edit, and what makes it faster: a minute, no GPU."""
    from rich.console import Console

    from kontext_fast.bench.runner import run_suite
    from kontext_fast.bench.suites import read_suite
    from kontext_fast.metrics.scorer import judge_benchmark
    from kontext_fast.records.lock import locked_folder
    from kontext_fast.records.schema import BASELINE, CONTROL
    from kontext_fast.records.store import ResultStore
    from kontext_fast.report.output.publish import publish
    from kontext_fast.report.output.terminal import print_headline

    folder = result_folder(out, "demo")
    # A second thread makes edits of this size no faster, and beside other programs it makes them ten times slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    suite = read_suite("quick" if full else "demo").resolve("tiny")
    with progress_bar() as bar, locked_folder(folder, "kontext demo"):
        show = suite_display(bar)
        run_suite(suite, folder, device="cpu", command="kontext demo", on_progress=show, worker_command=None)
        bar.begin("judging the outputs")
        judge_benchmark(ResultStore(folder))
        bar.begin("writing the report")
        written = publish(folder)
    raise_for_failures(written.report.result.records, folder)
    report = written.report.groups[0]
    card = report.gallery.cards[0]
    presets = (BASELINE, next(row.preset for row in reversed(report.rows) if row.preset != CONTROL))
    files = _save_pictures(card, presets, ResultStore(folder))
    if json:
        paths = {name: str(path) for name, path in files.items()}
        edit = {"instruction": card.item.instruction, "right": card.done_by_baseline, "pictures": paths}
        print_json({"folder": str(folder), "page": str(written.document), "edit": edit})
        return
    console = Console(highlight=False)
    if pictures:
        console = Console(highlight=False, force_terminal=True, color_system="truecolor", no_color=False)
    print()
    if pictures or (pictures is None and console.color_system is not None and not console.no_color):
        _print_pictures(files, console)
    _print_edit(card, files)
    if full:
        print_headline(written.report.analysis, console)
    else:
        _print_speeds(report, console)
        _print_next()
    print(f"Page: {written.document}")


def _save_pictures(card: GalleryItem, presets: Sequence[str], store: ResultStore) -> dict[str, Path]:
    """The input and what the two `presets` made of it, as files in the folder of `store`, by what they show."""
    hashes = {picture.preset or picture.caption: picture.image for picture in card.pictures}
    files = {}
    for shown, name in zip(("input", *presets), ("input", "edited", "edited-fast"), strict=True):
        files[shown] = store.folder / f"{name}.png"
        files[shown].write_bytes(store.image_path(hashes[shown] or "").read_bytes())
    return files


def _print_edit(card: GalleryItem, files: Mapping[str, Path]) -> None:
    chosen = "chosen since baseline gets it right" if card.done_by_baseline else "baseline gets none of the edits right"
    print(f'"{card.item.instruction}" ({chosen})')
    for shown, path in files.items():
        print(f"  {shown}: {path}")
    print()


def _print_pictures(files: Mapping[str, Path], console: Console) -> None:
    """Side by side, two pixels to a letter, as blocks of which the upper half is the foreground."""
    from PIL import Image
    from rich.text import Text

    pictures = [
        Image.open(path).convert("RGB").resize((_PICTURE, _PICTURE), Image.Resampling.BOX) for path in files.values()
    ]
    for row in range(0, _PICTURE, 2):
        line = Text()
        for picture in pictures:
            for column in range(_PICTURE):
                upper, lower = (_color(picture, column, row + half) for half in (0, 1))
                line.append("\u2580", style=f"{upper} on {lower}")
            line.append("  ")
        console.print(line, soft_wrap=True)
    print("  ".join(shown.ljust(_PICTURE) for shown in files).rstrip())


def _color(picture: Image, column: int, row: int) -> str:
    pixel = picture.getpixel((column, row))
    assert isinstance(pixel, tuple)
    return "#{:02x}{:02x}{:02x}".format(*pixel[:3])


def _print_speeds(report: GroupReport, console: Console) -> None:
    """One line of each preset with a bar as long as an edit takes, slow to fast, and what may be claimed of it."""
    from rich.table import Table
    from rich.text import Text

    from kontext_fast.analysis import format as fmt
    from kontext_fast.records.schema import CONTROL
    from kontext_fast.stats.claims import speed_claim

    rows = [row for row in report.rows if row.time is not None]
    longest = max(row.time.mean.value for row in rows if row.time)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("preset", "steps", "an edit", "", "against baseline"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        assert row.time is not None
        claim = "" if row.factor is None else speed_claim(row.factor, report.group.smallest_claim)
        color = _COLORS.get(claim, "")
        table.add_row(
            Text(row.preset),
            Text(f"{row.computed_steps.mean:.0f}" if row.computed_steps else ""),
            Text(fmt.seconds_estimate(row.time.mean)),
            Text(_BLOCK * max(1, round(_BAR * row.time.mean.value / longest)), style=color),
            Text(row.factor_note or "" if row.factor is None else f"{fmt.factor(row.factor)} {claim}", style=color),
        )
    console.print(table)
    for row in rows:
        if row.preset == CONTROL:
            limit = report.group.smallest_claim
            resolved = "" if limit is None else f", so that less than {100 * limit:.0f} % would not be called faster"
            print(
                f"{CONTROL} is baseline once more{resolved}. Of each, {row.time.mean.n if row.time else 0} processes."
            )
    print()


def _print_next() -> None:
    from kontext_fast.optimizations.presets import H100_DATES, H100_SECONDS
    from kontext_fast.pipeline.device import Machine

    seconds = ", ".join(f"{name} {value:g} s" for name, value in H100_SECONDS.items())
    print(f"On an H100, an edit of 1024x1024 in 28 steps: {seconds} (measured {H100_DATES}).")
    gpu = Machine.detect().gpu
    print(f"This machine: {gpu or 'no GPU found'}.")
    line = 'kontext edit photo.jpg "make the car red" --preset turbo'
    print(f"Next: {line}" if gpu else f"Next, on a machine with an NVIDIA GPU: {line}")
