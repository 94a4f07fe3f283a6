"""`kontext demo`: the whole job on `tiny` - edit, measure, judge and report - with no GPU, token or network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kontext_fast.cli.bench import raise_for_failures, suite_display
from kontext_fast.cli.command_class import Group
from kontext_fast.cli.options import Json
from kontext_fast.cli.output import print_json, progress_bar, result_folder
from kontext_fast.optimizations import DEFAULT_PRESET

GROUP = Group.START


def command(
    out: Annotated[
        Path | None, typer.Option(help="New or empty folder. [default: kontext-demo-TIME]", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """The whole job in a minute, with no GPU and no token."""
    from rich.console import Console

    from kontext_fast.bench.runner import run_suite
    from kontext_fast.bench.suites import read_suite
    from kontext_fast.cli.session import Setup, open_session
    from kontext_fast.datasets.shapes import held_out
    from kontext_fast.metrics.scorer import judge_benchmark
    from kontext_fast.pipeline.edit import EditRequest
    from kontext_fast.pipeline.images import ImageFile
    from kontext_fast.records.lock import locked_folder
    from kontext_fast.records.store import ResultStore
    from kontext_fast.report.output.publish import publish
    from kontext_fast.report.output.terminal import print_headline

    folder = result_folder(out, "demo")
    # Two rounds are enough for intervals, and the whole job stays within five minutes on two cores.
    suite = read_suite("quick").resolve("tiny").override(control=False, rounds=2)
    with progress_bar() as bar, locked_folder(folder, "kontext demo"):
        run_suite(suite, folder, device="cpu", command="kontext demo", on_progress=suite_display(bar))
        bar.begin("judging the outputs")
        judge_benchmark(ResultStore(folder))
        bar.begin("writing the report")
        written = publish(folder)
    item = held_out(1, suite.seed)[0]
    item.image.save(folder / "input.png")
    request = EditRequest(item.instruction, item.image, seed=suite.seed)
    with open_session(Setup(checkpoint="tiny", preset=DEFAULT_PRESET, lora=(), device="cpu")) as session:
        edited = session.save(request, ImageFile(folder / "edited.png"), source=folder / "input.png")
    print_headline(written.report.analysis, Console(highlight=False))
    if json:
        print_json({"folder": str(folder), "page": str(written.document), "edit": edited})
    else:
        print(f'"{item.instruction}": {folder / "input.png"} became {edited["path"]}.')
        print(f"The page is {written.document}.")
    raise_for_failures(written.report.result.records, folder)
