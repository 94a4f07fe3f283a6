"""A float8 file, LoRAs that are exchanged, and the offloadings of diffusers at full size, as written by
`benchmarks/gpu/weights_check.py --out .../weights_*.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kontext_fast.report.text.markup import Markdown, bullets, code_span, paragraphs, table
from tools.docs.doc_context import DocContext

STEPS = ("a step of", "away from the bf16 weights, stock", "first call", "allocated at most")
OFFLOADED = (
    "pipeline after",
    "a call with `{}`",
    "allocated at most",
    "first call of stock",
    "allocated at most",
    "latents",
)


def render(context: DocContext) -> Markdown:
    """Two tables for each file below the folder of results."""
    reports = [_of_report(*stored) for stored in context.stored("weights_*.json")]
    return paragraphs(reports or ["Not run on a GPU yet."])


def _of_report(link: Markdown, report: dict[str, Any]) -> Markdown:
    preset, stages, errors = report["preset"], report["stages"], report["relative_error"]
    exchanges = [stage["seconds"] for name, stage in stages.items() if name.startswith("exchange_")]
    to_the_file = errors[f"{preset} of the file, to the file"]
    lines = [
        Markdown("{} matrices run in {} as the file stores them; its step is {} away from stock's with the weights "
                 "of the file.").format(report["as_stored_file"], code_span(preset), f"{to_the_file:.4f}"),
        f"The file is written in {stages['write']['seconds']:.0f} s and read in {stages['read']['seconds']:.0f} s; "
        f"another LoRA of rank 16 takes the place of a merged one in {min(exchanges):.1f} to {max(exchanges):.1f} s.",
        Markdown("{} on {}: {}.").format(code_span(report["checkpoint"]), report["gpu"], link),
    ]  # fmt: skip
    header = (OFFLOADED[0], Markdown(OFFLOADED[1].format(preset)), *OFFLOADED[2:])
    tables = [table(STEPS, _steps(report)), table(header, _offloaded(report))]
    return paragraphs([*tables, bullets(lines)])


def _steps(report: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    preset, errors = code_span(report["preset"]), report["relative_error"]
    weights = (
        ("the bf16 weights", "original", report["preset"]),
        ("the file", "file", f"{report['preset']} of the file"),
    )
    for what, name, error in weights:
        first = report["stages"][f"first_step_{name}"]
        yield (
            Markdown("{}, {}").format(what, preset),
            *(f"{errors[error]:.4f}", f"{first['seconds']:.2f} s", f"{first['peak_gib']:.1f} GiB"),
        )
    of_file = report["stages"]["first_step_of_the_file"]
    yield "the file, stock", f"{errors['file']:.4f}", f"{of_file['seconds']:.2f} s", f"{of_file['peak_gib']:.1f} GiB"
    if adapters := report["stages"].get("step_after_exchange"):
        seconds, peak = f"{adapters['seconds']:.2f} s", f"{adapters['peak_gib']:.1f} GiB"
        yield Markdown("the file with a LoRA, {}").format(preset), "", seconds, peak


def _offloaded(report: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for name, facts in report.items():
        if not name.endswith("_facts"):
            continue
        method = name.removesuffix("_facts")
        second, stock = (report["stages"].get(f"{method}_{step}") for step in ("second_step", "stock_step"))
        equal = "equal" if facts["equal_to_accelerated"] else f"{facts['error_to_accelerated']:.4f} away"
        after = {True: "; stock's after `revert` are, too", False: "; stock's after `revert` are not"}
        yield (
            code_span(method),
            *(f"{second['seconds']:.2f} s", f"{second['peak_gib']:.1f} GiB"),
            *((f"{stock['seconds']:.2f} s", f"{stock['peak_gib']:.1f} GiB") if stock else ("not run", "")),
            Markdown(equal + after.get(facts.get("equal_to_stock"), "")),
        )
