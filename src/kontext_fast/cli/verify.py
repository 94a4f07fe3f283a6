"""`kontext verify`: a non-inferiority test of presets, which a preset can fail.

Exit codes: 0 every verdict is L0, L1 or L2; 1 one is L3, L4 or "cannot tell"; 2 bad input; 3 this machine cannot do it;
130 interrupted, and --resume goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kontext_fast.cli import options
from kontext_fast.cli.command_class import Group
from kontext_fast.cli.output import (
    Bar,
    StageDisplay,
    command_line,
    print_json,
    progress_bar,
    result_folder,
    say,
    time_left,
)
from kontext_fast.errors import GateFailed
from kontext_fast.optimizations import DEFAULT_PRESET

if TYPE_CHECKING:
    from kontext_fast.verify.run import Progress

GROUP = Group.MEASURE


def command(
    checkpoint: options.Checkpoint = None,
    preset: Annotated[
        list[str] | None, options.presets_option(f"{DEFAULT_PRESET}; all of them with --frontier")
    ] = None,
    items: Annotated[int, typer.Option(help="Items at most.")] = 100,
    seeds: Annotated[int, typer.Option(help="Seeds per item, 2 at least.")] = 2,
    dataset: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE",
            help="JSONL or CSV file, folder of images with texts, or KontextBench. [default: the world of tiny]",
            show_default=False,
        ),
    ] = None,
    lora: options.Lora = None,
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
    converged_items: Annotated[
        int,
        typer.Option(metavar="N", help="Compare N of the items with the model's own converged answer; takes long."),
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what --out holds.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="New or empty folder. [default: kontext-verify-TIME]", show_default=False)
    ] = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Test whether presets make your images worse.

    Gives a verdict with margins and controls, and a page of images.
    """
    from rich.console import Console

    from kontext_fast.optimizations.presets import find_preset
    from kontext_fast.pipeline.hub import default_checkpoint
    from kontext_fast.records.lock import locked_folder
    from kontext_fast.report.output.quality_page import write_quality_page
    from kontext_fast.report.output.terminal import print_verdicts, verdicts_as_data
    from kontext_fast.verify.analysis import analyze
    from kontext_fast.verify.converged_reference import reference_evaluations
    from kontext_fast.verify.frontier import frontier as frontier_of
    from kontext_fast.verify.margins import read_margins
    from kontext_fast.verify.request import Request, every_preset
    from kontext_fast.verify.run import verify

    folder = result_folder(out, "verify", resume=resume)
    checkpoint = options.checkpoint_or_default(checkpoint, device, default_checkpoint)
    named = options.names(preset) or (every_preset(checkpoint) if frontier else (DEFAULT_PRESET,))
    request = Request(
        # The records call a preset of a file by its name, since a path is of this machine alone.
        presets=tuple(find_preset(name) if name.endswith(".toml") else name for name in named),
        checkpoint=checkpoint,
        items=items,
        seeds=seeds,
        dataset=dataset,
        lora=tuple(map(options.parse_lora, lora or ())),
        steps=steps,
        guidance=guidance,
        seed=seed,
        batch=batch,
        frontier=frontier,
        converged_items=converged_items,
        device=device,
        weights=weights,
        margins=read_margins(margins),
    )
    # The folder and the device do not change what is verified, and a path is of this machine alone.
    choices: dict[str, str | float | bool | None] = {
        "checkpoint": checkpoint,
        "preset": ",".join(Path(name).name for name in named),
        "items": items,
        "seeds": seeds,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "batch": batch,
        "frontier": frontier,
        "converged-items": converged_items or None,
        "lora": ",".join(options.lora_names(lora)) or None,
        "dataset": None if dataset is None else dataset.name,
        "weights": None if weights is None else weights.name,
    }
    command = command_line("verify", choices)
    if converged_items:
        each = reference_evaluations() + steps
        say(
            f"The converged reference of {converged_items} items takes {converged_items * each} evaluations, as many "
            f"as {converged_items * each / steps:.0f} edits of baseline."
        )
    with progress_bar() as bar, locked_folder(folder, command):
        result = verify(request, folder, resume=resume, command=command, on_progress=_display(bar))
        bar.begin("writing the page")
        page = write_quality_page(folder)
    analysis = analyze(result)
    for reason in analysis.verification.rejected:
        say(reason)
    points = frontier_of(result, analysis)
    print_verdicts(analysis, points, Console(highlight=False))
    if json:
        print_json({"folder": str(folder), "page": str(page), **verdicts_as_data(analysis, points)})
    else:
        print(f"The page is {page}.")
    failing = [preset for preset in analysis.presets if not preset.verdict.level.passes]
    if failing:
        failed = ", ".join(f"{preset.preset} ({preset.verdict.level.value})" for preset in failing)
        raise GateFailed(f"Not verified as harmless: {failed}; the page says why.")


def _display(bar: Bar) -> Callable[[Progress], None]:
    display = StageDisplay(bar)

    def show(progress: Progress) -> None:
        left = time_left(progress.left_s)
        line = f"{progress.arm}: {progress.done} of {progress.total} done{left and ', ' + left}"
        display.show(progress.arm, line, f"{progress.arm} {left}", progress.done, progress.total)

    return show
