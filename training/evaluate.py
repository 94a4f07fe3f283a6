"""Judges `tiny` on held-out items: per kind of edit, per number of steps, and on captions.

    python training/evaluate.py --checkpoint runs/tiny/tiny --items 200 --steps 28,14,8,4,2 --out runs/tiny/scores.json

Writes the raw verdicts and prints the tables of training/README.md. Every number of steps sees the same items with
the same noise, so their difference is a paired one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track

from kontext_fast.datasets.shapes.dataset import CaptionItem, ShapesItem, held_out, held_out_captions
from kontext_fast.datasets.shapes.edits import EDIT_KINDS
from kontext_fast.datasets.shapes.judge import judge, judge_caption
from kontext_fast.pipeline.edit import EditRequest, edit_together
from kontext_fast.pipeline.load import load
from kontext_fast.stats.intervals import acceptance, paired_difference

Row = dict[str, Any]


def drawn(pipe: Any, requests: list[EditRequest], batch: int) -> Iterator[Image.Image]:
    """The image of each request, `batch` at a time."""
    for first in track(range(0, len(requests), batch), f"{requests[0].steps} steps"):
        for result in edit_together(pipe, requests[first : first + batch]):
            yield result.images[0]


def judged_edits(pipe: Any, items: list[ShapesItem], steps: int, batch: int) -> list[Row]:
    """One row per item with the judge's verdict of its edit; the seed is the item's position."""
    requests = [EditRequest(item.instruction, item.image, steps=steps, seed=seed) for seed, item in enumerate(items)]
    return [
        {"item": item.id, "kind": item.kind, "open": item.open} | asdict(judge(image, item))
        for item, image in zip(items, drawn(pipe, requests, batch), strict=True)
    ]


def judged_captions(pipe: Any, items: list[CaptionItem], steps: int, batch: int) -> list[Row]:
    """One row per caption, drawn without an input image."""
    requests = [EditRequest(item.instruction, steps=steps, seed=seed) for seed, item in enumerate(items)]
    return [
        {"item": item.instruction} | asdict(judge_caption(image, item))
        for item, image in zip(items, drawn(pipe, requests, batch), strict=True)
    ]


def accepted(rows: list[Row], **only: object) -> dict[str, float]:
    """By item, of the rows whose columns have the values of `only`."""
    chosen = [row for row in rows if all(row[column] == value for column, value in only.items())]
    return {row["item"]: float(row["done"] and row["kept"]) for row in chosen}


def share(by_item: dict[str, float]) -> str:
    estimate = acceptance(by_item)
    if estimate is None or estimate.interval is None:
        return "not measured"
    low, high = estimate.interval
    return f"{estimate.value:.1%} ({low:.0%} to {high:.0%}, n = {estimate.n})"


def table_of_kinds(rows: list[Row]) -> str:
    lines = ["| edit | answers | accepted | done | kept |", "|---|---|---|---|---|"]
    for kind in EDIT_KINDS:
        of_kind = [row for row in rows if row["kind"] == kind]
        if of_kind:
            done, kept = (sum(row[half] for row in of_kind) / len(of_kind) for half in ("done", "kept"))
            answers = "many" if of_kind[0]["open"] else "one"
            lines.append(f"| {kind} | {answers} | {share(accepted(rows, kind=kind))} | {done:.0%} | {kept:.0%} |")
    return "\n".join([*lines, f"| **all** | | {share(accepted(rows))} | | |"])


def table_of_steps(by_steps: dict[int, list[Row]]) -> str:
    """Accepted share by number of steps, and for open edits the paired difference to the most steps."""
    most = max(by_steps)
    lines = ["| steps | one answer | many answers | many answers, minus those at most steps |", "|---|---|---|---|"]
    for steps in sorted(by_steps, reverse=True):
        rows = by_steps[steps]
        single, many = accepted(rows, open=False), accepted(rows, open=True)
        difference = paired_difference(accepted(by_steps[most], open=True), many)
        words = "not measured"
        if steps == most:
            words = ""
        elif difference is not None and difference.interval is not None:
            words = f"{difference.value:+.1%} ({difference.interval[0]:+.0%} to {difference.interval[1]:+.0%})"
        lines.append(f"| {steps} | {share(single)} | {share(many)} | {words} |")
    return "\n".join(lines)


def write(by_steps: dict[int, list[Row]], captions: list[Row], path: Path) -> None:
    """JSON with one verdict per line."""

    def listed(rows: list[Row]) -> str:
        return "[\n" + ",\n".join(f"   {json.dumps(row)}" for row in rows) + "\n  ]"

    edits = ",\n".join(f'  "{steps}": {listed(rows)}' for steps, rows in by_steps.items())
    path.write_text(f'{{"edits": {{\n{edits}\n }},\n "captions": {listed(captions)}\n}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--steps", default="28,14,8,4,2", help="numbers of steps; the largest makes the table of kinds")
    parser.add_argument("--batch", type=int, default=20, help="edits at a time")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    pipe = load(arguments.checkpoint).pipe
    items = held_out(arguments.items)
    by_steps = {
        int(steps): judged_edits(pipe, items, int(steps), arguments.batch) for steps in arguments.steps.split(",")
    }
    most = max(by_steps)
    captions = judged_captions(pipe, held_out_captions(arguments.captions), most, arguments.batch)
    write(by_steps, captions, arguments.out)
    print(
        table_of_kinds(by_steps[most]), table_of_steps(by_steps), f"captions: {share(accepted(captions))}", sep="\n\n"
    )


if __name__ == "__main__":
    main()
