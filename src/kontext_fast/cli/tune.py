"""`kontext tune`: a solver fitted to your own weights, proven on edits that no fit has seen.

Exit codes: 0 every number of evaluations passed and has its file; 1 one fails or cannot be told, as with too few items;
2 bad input; 3 this machine cannot do it; 130 interrupted, and --resume goes on.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kontext_fast.cli import options
from kontext_fast.cli.command_class import Group
from kontext_fast.cli.output import Bar, StageDisplay, command_line, print_json, progress_bar, result_folder, say
from kontext_fast.errors import GateFailed, InvalidInput

if TYPE_CHECKING:
    from kontext_fast.tuning.parts import Parts
    from kontext_fast.tuning.request import TuneResult
    from kontext_fast.tuning.stored_runs import Progress

GROUP = Group.MEASURE


def command(
    checkpoint: options.Checkpoint = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE",
            help="Edits like yours: JSONL file, folder of images with texts, or KontextBench. [default: what "
            "tiny learned from]",
            show_default=False,
        ),
    ] = None,
    evaluations: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Runs of the transformer per edit, a preset for each. [default: 10]",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(metavar="S", help="Instead: as many as an edit of S seconds has time for.", show_default=False),
    ] = None,
    as_accurate: Annotated[
        bool,
        typer.Option("--as-accurate", help="Instead: the fewest that come as near to the model's answer as --steps."),
    ] = False,
    precision: Annotated[
        Literal["bf16", "fp8", "float32", "auto"],
        typer.Option(help="Of the transformer's blocks while it is fitted and used."),
    ] = "bf16",
    target: Annotated[
        Literal["converged", "steps"],
        typer.Option(help="What images come near to: the model's own answer, or what --steps give."),
    ] = "converged",
    items: Annotated[int, typer.Option(help="Items to fit to, and of these every fifth to choose by.")] = 64,
    held_out: Annotated[int, typer.Option(help="Other items, which prove what the fit is worth.")] = 100,
    lora: options.Lora = None,
    steps: options.Steps = 28,
    guidance: options.Guidance = 2.5,
    size: options.OutputSize = None,
    seed: Annotated[int, typer.Option(help="Of the noise, and of the items of tiny.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what --out holds.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="New or empty folder. [default: kontext-tune-TIME]", show_default=False),
    ] = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Fit a faster solver to your own weights.

    Writes a preset file for each number of evaluations that passes its proof, and a page.
    """
    from kontext_fast.pipeline.hub import default_checkpoint
    from kontext_fast.pipeline.load import load
    from kontext_fast.pipeline.lora import load_lora
    from kontext_fast.pipeline.sizes import parse_size
    from kontext_fast.records.lock import locked_folder
    from kontext_fast.report.output.tuning_page import write_tuning_page
    from kontext_fast.tuning.request import TuneRequest
    from kontext_fast.tuning.tune import tune

    if evaluations is not None and (seconds is not None or as_accurate):
        raise InvalidInput("--evaluations names the numbers that --seconds and --as-accurate find; leave one out.")
    numbers = () if evaluations is None else options.whole_numbers(evaluations, "evaluations")
    named = {"evaluations": tuple(sorted(set(numbers)))} if numbers else {}
    asked: dict[str, Any] = {
        "as_accurate": as_accurate, "seconds": seconds, "precision": precision, "target": target,
        "steps": steps, "guidance": guidance, "size": parse_size(size) if size else None, **named,
    }  # fmt: skip
    TuneRequest(**asked)
    loras = [options.parse_lora(text) for text in lora or ()]
    folder = result_folder(out, "tune", resume=resume)
    checkpoint = options.checkpoint_or_default(checkpoint, device, default_checkpoint)
    parts = _parts(checkpoint, dataset, items=items, held_out=held_out, seed=seed)
    line = command_line(
        "tune",
        {
            "checkpoint": checkpoint, "dataset": None if dataset is None else dataset.name, "evaluations": evaluations,
            "seconds": seconds, "as-accurate": as_accurate, "precision": precision, "target": target, "items": items,
            "held-out": held_out, "steps": steps, "guidance": guidance, "size": size, "seed": seed,
            "lora": ",".join(options.lora_names(lora)) or None,
        },
    )  # fmt: skip
    with progress_bar() as bar, locked_folder(folder, line), ExitStack() as stack:
        bar.begin(f"loading {checkpoint}")
        loaded = load(checkpoint, device=device, dtype="float32" if precision == "float32" else None)
        for path, strength in loras:
            stack.enter_context(load_lora(loaded.pipe, path, strength))
        result = tune(
            loaded.pipe,
            parts,
            folder,
            checkpoint=loaded.facts.name,
            loras=list(options.lora_names(lora)),
            resume=resume,
            command=line,
            say=lambda sentence: _said(bar, sentence),
            on_progress=_display(bar),
            **asked,
        )
        bar.begin("writing the page")
        page = write_tuning_page(folder)
    if json:
        print_json({"folder": str(folder), "page": str(page), **result.as_data()})
    else:
        _print_result(result, page)
    if failing := [point for point in result.points if result.file_of(point) is None]:
        named_failing = ", ".join(f"{point.evaluations} ({_reason(result, point.verdict.value)})" for point in failing)
        raise GateFailed(f"Without a preset file: {named_failing} evaluations; the page says why.")


def _parts(checkpoint: str, dataset: Path | None, *, items: int, held_out: int, seed: int) -> Parts:
    """Raises InvalidInput where the weights have no edits of their own, and GateFailed where there are too few."""
    from kontext_fast.datasets import read_dataset
    from kontext_fast.pipeline.load import kind_of
    from kontext_fast.tuning.parts import shapes_parts, split

    if dataset is not None:
        chosen = read_dataset(dataset)
        for reason in chosen.rejected:
            say(reason)
        return split(chosen, items=items, held_out=held_out, seed=seed)
    kind = kind_of(checkpoint)
    if kind.random_weights:
        raise InvalidInput(
            "Random weights make noise, to which nothing can be fitted; tune tiny, or weights of yours. The presets "
            "tuned-10 and tuned-7 run on them, for their time alone."
        )
    if not kind.has_judge:
        raise InvalidInput(
            f"Give images and instructions like yours for {checkpoint} with --dataset: a folder, a JSONL file or a "
            "copy of KontextBench."
        )
    return shapes_parts(items=items, held_out=held_out, seed=seed)


def _said(bar: Bar, sentence: str) -> None:
    with bar.hidden():
        say(sentence)


def _display(bar: Bar) -> Progress:
    display = StageDisplay(bar)

    def show(stage: str, done: int, total: int) -> None:
        display.show(stage, f"{stage}: {done} of {total} evaluations done", stage, min(done, total), total)

    return show


def _print_result(result: TuneResult, page: Path) -> None:
    for point in result.points:
        fitted, plain = (float(point.distances[name].mean()) for name in ("fitted", "plain steps"))
        accurate = "" if point.closeness is None else f"; than {result.request.steps} steps: {point.closeness.value}"
        file = result.file_of(point)
        mixture = f" ({point.mixture.words})" if result.request.precision == "auto" else ""
        print(
            f"{point.evaluations} evaluations{mixture}: {point.verdict.value}, at a mean distance of {fitted:.4f} to "
            f"the model's answer where as many plain steps have {plain:.4f}{accurate}" + (f". {file}" if file else "")
        )
    print(f"The page is {page}.")
    if result.files:
        print(f'Use it: kontext edit IMAGE "INSTRUCTION" --preset {result.files[0]}')


def _reason(result: TuneResult, verdict: str) -> str:
    return "not as accurate" if result.request.as_accurate and verdict == "passes" else verdict
