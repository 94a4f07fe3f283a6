"""`kontext bench`: measures presets against each other, each run in a process of its own.

Exit codes: 0 all runs ended well or were refused with a reason; 1 a run crashed, timed out or ran out of memory;
2 bad input; 3 nothing could be run on this machine; 130 interrupted.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kontext_fast.bench import bundled_suites
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
from kontext_fast.errors import GateFailed, InvalidInput, Refused

if TYPE_CHECKING:
    from kontext_fast.bench.runner import SuiteProgress
    from kontext_fast.records.schema import Record, ResultFile


_OF_A_RUN = {"run_id", "preset", "round", "status", "reason"}

GROUP = Group.MEASURE


def command(
    suite: Annotated[
        str, typer.Option(metavar="NAME|FILE.toml", help=f"What to run: {', '.join(bundled_suites())}, or a file.")
    ] = "quick",
    checkpoint: options.Checkpoint = None,
    preset: Annotated[list[str] | None, options.presets_option("the suite's")] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE",
            help="Your own items, as in kontext verify. [default: the world of tiny]",
            show_default=False,
        ),
    ] = None,
    lora: options.Lora = None,
    sizes: Annotated[
        str | None, typer.Option(metavar="WxH,...", help="Output sizes. [default: the suite's]", show_default=False)
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="N,...", help="Step counts. [default: the suite's]", show_default=False)
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="N,...", help="Images per call. [default: the suite's]", show_default=False)
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="How often every preset runs. [default: the suite's]", show_default=False)
    ] = None,
    items: Annotated[
        int | None, typer.Option(help="Images with instructions. [default: the suite's]", show_default=False)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="First seed of the noise, and of the order of runs. [default: the suite's]", show_default=False
        ),
    ] = None,
    calls: Annotated[
        int | None, typer.Option(help="Timed calls per process and cell. [default: the suite's]", show_default=False)
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of warm-up calls after the first call. [default: the suite's]", show_default=False
        ),
    ] = None,
    peers: Annotated[
        bool,
        typer.Option("--peers", help="Also run the recipes of other projects; those that cannot run here are refused."),
    ] = False,
    control: Annotated[
        bool, typer.Option(help="Also run baseline a second time (A/A control), which limits what can be claimed.")
    ] = True,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES", help="Measure only the most important cells, in about this time.", show_default=False
        ),
    ] = None,
    roofline: Annotated[
        bool,
        typer.Option(
            "--roofline", help="Only profile one step of each preset, and compare it with the limits of the hardware."
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the benchmark in --out; give the options of its first run.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="New or empty folder. [default: kontext-bench-TIME]", show_default=False)
    ] = None,
    device: options.Device = None,
    gpus: Annotated[
        int | None,
        typer.Option(metavar="N", help="Also run each preset with the engine on N GPUs together.", show_default=False),
    ] = None,
    json: options.Json = False,
) -> None:
    """Measure how long presets take, each against the others.

    Writes records, which `kontext report` and `kontext cost` read.
    """
    from kontext_fast.bench.peers import discover_peers
    from kontext_fast.bench.runner import run_suite
    from kontext_fast.bench.suites import read_suite
    from kontext_fast.datasets import read_dataset
    from kontext_fast.metrics.scorer import judge_benchmark
    from kontext_fast.pipeline.load import find_source
    from kontext_fast.records.lock import locked_folder
    from kontext_fast.records.schema import BASELINE
    from kontext_fast.records.store import ResultStore

    suite_file = read_suite(suite)
    if budget is not None and not budget > 0:
        raise InvalidInput(f"The budget is {budget:g} minutes; give a number above 0.")
    loras = [options.parse_lora(text) for text in lora or ()]
    folder = result_folder(out, "bench", resume=resume)
    checkpoint = options.checkpoint_or_default(checkpoint, device, _default_checkpoint)
    named = suite_file.resolve(find_source(checkpoint).kind)
    chosen = named.override(
        **{"ablate" if named.ablate else "presets": options.names(preset)},
        sizes=options.split(sizes),
        steps=None if steps is None else options.whole_numbers(steps, "step counts"),
        batches=None if batch is None else options.whole_numbers(batch, "batch sizes"),
        rounds=rounds,
        items=items,
        seed=seed,
        calls=calls,
        max_warmup=warmup,
        peers=(BASELINE, *discover_peers()) if peers else None,
        control=named.control and control,
    )
    if gpus is not None:
        chosen = chosen.override(presets=_on_gpus(chosen.presets, gpus))
    if dataset is not None:
        own = read_dataset(dataset)
        for reason in own.rejected:
            say(reason)
        if items is None:
            chosen = chosen.override(items=min(chosen.items, len(own.items)))
    if roofline:
        if dataset is not None or lora:
            raise InvalidInput("A roofline is of one step, which neither --dataset nor --lora changes; leave them out.")
        from kontext_fast.cli.roofline_table import run_rooflines

        with locked_folder(folder, "kontext bench --roofline"):
            run_rooflines(chosen, folder, checkpoint=checkpoint, device=device, as_json=json)
        return
    # The folder, the device and the budget do not change what is measured.
    choices = {
        "suite": suite,
        "checkpoint": checkpoint,
        "preset": ",".join(options.names(preset) or ()) or None,
        "sizes": sizes,
        "steps": steps,
        "batch": batch,
        "rounds": rounds,
        "dataset": None if dataset is None else dataset.name,
        "lora": ",".join(options.lora_names(lora)) or None,
        "items": items,
        "seed": seed,
        "calls": calls,
        "warmup": warmup,
        "peers": peers,
        "no-control": not control,
        "gpus": gpus,
    }
    line = command_line("bench", choices)
    with progress_bar() as bar, locked_folder(folder, line):
        result = run_suite(
            chosen,
            folder,
            checkpoint=checkpoint,
            dataset=dataset,
            loras=loras,
            device=device,
            command=line,
            resume=resume,
            budget_s=None if budget is None else 60 * budget,
            on_progress=suite_display(bar),
        )
        # The judge knows the answers of its own world alone.
        if dataset is None and any(record.checkpoint and record.checkpoint.has_judge for record in result.records):
            bar.begin("judging the outputs")
            store = ResultStore(folder)
            judge_benchmark(store)
            result = store.load()
    _print_result(result, folder, as_json=json)
    raise_for_failures(result.records, folder)


def _on_gpus(presets: tuple[str, ...], gpus: int) -> tuple[str, ...]:
    """`presets`, and those with the engine on so many GPUs. Raises InvalidInput where there are none."""
    from kontext_fast.bench.peers import find_preset

    if gpus < 2:
        raise InvalidInput(f"--gpus is {gpus}; give at least 2, or leave it out.")
    names = [
        f"{name[:-1]},gpus={gpus})" if name.endswith(")") else f"{name}(gpus={gpus})"
        for name in presets
        if any("gpus" in type(part).model_fields for part in find_preset(name).optimizations)
    ]
    if not names:
        raise InvalidInput("--gpus needs a preset with the engine; add --preset balanced.")
    return (*presets, *names)


def suite_display(bar: Bar) -> Callable[[SuiteProgress], None]:
    """What shows the progress of a suite on `bar`."""
    display = StageDisplay(bar)

    def show(suite: SuiteProgress) -> None:
        run = f"block {suite.round + 1}/{suite.rounds} {suite.preset}"
        line = f"run {suite.run + 1} of {suite.runs}: {run}"
        display.show(suite.run, line, " ".join([run, *_details(suite)]), suite.run, suite.runs)

    return show


def _details(suite: SuiteProgress) -> list[str]:
    details: list[str] = []
    if (progress := suite.progress) is not None:
        details.append(progress.phase)
        if progress.call:
            details.append(f"{progress.call}/{progress.calls}")
        if progress.step:
            details.append(f"step {progress.step}/{progress.steps}")
    return [*details, time_left(suite.left_s)]


def raise_for_failures(records: tuple[Record, ...], folder: Path) -> None:
    """Raise GateFailed where runs failed, and Refused where this machine could run none of them."""
    records = tuple(record for record in records if record.status != "not measured")
    failed = [record for record in records if record.status not in ("ok", "refused")]
    if failed:
        names = ", ".join(dict.fromkeys(record.preset for record in failed))
        raise GateFailed(f"{len(failed)} of {len(records)} runs failed ({names}); see the reasons in {folder}.")
    if records and all(record.status == "refused" for record in records):
        raise Refused("This machine refused every preset; kontext doctor says what it can run.")


def _default_checkpoint(device: str | None) -> tuple[str, str]:
    """Chosen in a process of its own: torch must not take memory and threads during the runs that are measured."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from kontext_fast.pipeline.hub import default_checkpoint

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(default_checkpoint, device).result()


def _print_result(result: ResultFile, folder: Path, *, as_json: bool) -> None:
    from rich.console import Console

    from kontext_fast.analysis.benchmark import analyze_benchmark
    from kontext_fast.report.output.terminal import print_headline

    print_headline(analyze_benchmark(result), Console(highlight=False))
    if as_json:
        runs = [record.model_dump(mode="json", include=_OF_A_RUN) for record in result.records]
        print_json({"folder": str(folder), "suite": result.suite, "runs": runs})
    else:
        print(f"Records are in {folder}; render them with: kontext report {shlex.quote(str(folder))}")
