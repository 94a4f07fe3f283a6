"""`kontext verify`: whether presets change the images, as a verdict that can say yes.

Exit codes: 0 every verdict is L0, L1 or L2; 1 one is L3, L4 or "cannot tell"; 2 bad input; 3 this machine cannot do it;
130 interrupted, and --resume goes on.
"""

from __future__ import annotations

import json as json_format
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kontext_fast.cli import options
from kontext_fast.cli.progress import Bar, progress_bar
from kontext_fast.cli.suite_run import free_folder, say
from kontext_fast.errors import GateFailed, InvalidInput
from kontext_fast.optimizations import DEFAULT_PRESET

if TYPE_CHECKING:
    from kontext_fast.verify.analysis import VerificationAnalysis
    from kontext_fast.verify.frontier import Frontier
    from kontext_fast.verify.run import Progress


def command(
    checkpoint: options.Checkpoint = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help=f"Presets to verify; see kontext presets. [default: {DEFAULT_PRESET}; all of them with --frontier]",
            show_default=False,
        ),
    ] = None,
    items: Annotated[int, typer.Option(help="Items at most.")] = 100,
    seeds: Annotated[int, typer.Option(help="Seeds per item, 2 at least.")] = 2,
    dataset: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE",
            help="JSONL file, folder of images with texts, or a copy of KontextBench. [default: the world of tiny]",
            show_default=False,
        ),
    ] = None,
    steps: options.Steps = 28,
    guidance: options.Guidance = 2.5,
    seed: Annotated[int, typer.Option(help="First seed of the noise, and seed of the items.")] = 0,
    margins: Annotated[
        Path | None, typer.Option(help="TOML file of margins. [default: the package's]", show_default=False)
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Holds clip, dino, lpips. [default: the Hub's cache]", show_default=False),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Images per call at most. [default: what suits checkpoint and device]", show_default=False),
    ] = None,
    frontier: Annotated[
        bool, typer.Option("--frontier", help="Time edits too, and hold presets against plain fewer steps.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what --out holds.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="New or empty folder. [default: kontext-verify-TIME]", show_default=False)
    ] = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Say whether presets change the images: a verdict with margins, controls and a page of pictures."""
    from kontext_fast.pipeline.load import default_checkpoint
    from kontext_fast.report.output.quality_page import write_quality_page
    from kontext_fast.verify.analysis import analyze
    from kontext_fast.verify.frontier import frontier as frontier_of
    from kontext_fast.verify.margins import read_margins
    from kontext_fast.verify.request import Request, every_preset
    from kontext_fast.verify.run import verify

    if resume and out is None:
        raise InvalidInput("Name the folder to go on with as --out.")
    folder = out if resume and out is not None else free_folder(out, "verify")
    chosen = checkpoint
    if chosen is None:
        chosen, reason = default_checkpoint(device)
        say(f"The checkpoint is {chosen}, since {reason}.")
    request = Request(
        presets=_presets(preset, every_preset() if frontier else (DEFAULT_PRESET,)),
        checkpoint=chosen,
        items=items,
        seeds=seeds,
        dataset=dataset,
        steps=steps,
        guidance=guidance,
        seed=seed,
        batch=batch,
        frontier=frontier,
        device=device,
        weights=weights,
        margins=read_margins(margins),
    )
    with progress_bar() as bar:
        display = _Display(bar)
        result = verify(request, folder, resume=resume, command=_command_line(request), on_progress=display.show)
        bar.begin("writing the page")
        page = write_quality_page(folder)
    found = analyze(result)
    for reason in found.verification.rejected:
        say(reason)
    points = frontier_of(result, found)
    _print(found, points)
    if json:
        print(json_format.dumps(_machine_readable(found, folder, page, points)))
    else:
        print(f"The page is {page}.")
    _raise_unless_passed(found)


def _presets(asked: str | None, usual: tuple[str, ...]) -> tuple[str, ...]:
    return usual if asked is None else tuple(part.strip() for part in asked.split(","))


class _Display:
    """A bar where someone can see it; where stderr is a file, a line per arm."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._arm: str | None = None

    def show(self, progress: Progress) -> None:
        left = "" if progress.left_s is None else f" {_clock(progress.left_s)} left"
        self._bar.begin(f"{progress.arm}{left}", progress.total)
        self._bar.step(progress.done, progress.total)
        if progress.arm != self._arm:
            self._arm = progress.arm
            if not sys.stderr.isatty():
                say(f"{progress.arm}: {progress.done} of {progress.total} done{',' + left if left else ''}")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _command_line(request: Any) -> str:
    """What to type to verify the same again; the folder and the device are of this machine."""
    words = ["kontext", "verify", "--checkpoint", request.checkpoint, "--preset", ",".join(map(str, request.presets))]
    for name in ("items", "seeds", "steps", "guidance", "seed"):
        words += [f"--{name}", f"{getattr(request, name):g}"]
    words += [] if request.batch is None else ["--batch", str(request.batch)]
    words += ["--frontier"] if request.frontier else []
    for name in ("dataset", "weights"):
        if (path := getattr(request, name)) is not None:
            words += [f"--{name}", Path(path).name]
    return shlex.join(words)


def _print(found: VerificationAnalysis, points: Frontier | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("preset", "verdict", "because"):
        table.add_column(name, no_wrap=name == "preset", overflow="fold")
    for one in found.presets:
        level = one.verdict.level
        shown = level.meaning if level.value == level.meaning else f"{level.value} {level.meaning}"
        table.add_row(*map(Text, (one.preset, shown, one.verdict.reason)))
    console.print(table)
    if points is not None:
        from kontext_fast.report.text.quality import frontier_finding

        console.print(Text(frontier_finding(points)))
    for metric, reason in found.insensitive.items():
        console.print(Text(f"{metric} is insensitive here: {reason}."))
    for facts in found.metrics:
        if facts.not_measured:
            console.print(Text(f"{facts.name}: {facts.not_measured}"))
        elif facts.model:
            console.print(Text(f"{facts.name}: {facts.model}, weights {(facts.weights_sha256 or '')[:12]}"))


def _machine_readable(found: VerificationAnalysis, folder: Path, page: Path, points: Frontier | None) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "page": str(page),
        "margins_sha256": found.verification.margins_sha256,
        "presets": [
            {
                "preset": one.preset,
                "level": one.verdict.level.value,
                "meaning": one.verdict.level.meaning,
                "reason": one.verdict.reason,
            }
            for one in found.presets
        ],
        "frontier": None if points is None else [asdict(point) for point in points.points],
        "blind": dict(found.insensitive),
        "not_measured": {facts.name: facts.not_measured for facts in found.metrics if facts.not_measured},
    }


def _raise_unless_passed(found: VerificationAnalysis) -> None:
    bad = [f"{one.preset} ({one.verdict.level.value})" for one in found.presets if not one.verdict.level.passes]
    if bad:
        raise GateFailed(f"Not verified as harmless: {', '.join(bad)}; the page says why.")
