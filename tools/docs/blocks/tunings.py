"""What `kontext tune` came to by precision and number of evaluations, from every `tune-*.json` of the results."""

from __future__ import annotations

from typing import Any

from kontext_fast.report.text.markup import Markdown, bullets, paragraphs, table
from tools.docs.doc_context import DocContext

PRECISIONS = ("float32", "bf16", "fp8")
HEADER = ("evaluations", *PRECISIONS, "plain steps, float32")


def render(context: DocContext) -> Markdown:
    """A row for each number of evaluations, then for what they are compared with; of two records of one cell the one of
    the newer folder."""
    points: dict[tuple[str, int], dict[str, Any]] = {}
    beside: dict[tuple[str, str], dict[str, Any]] = {}
    records: list[Markdown] = []
    for stored_at, tuning in context.stored("tune-*.json"):
        items = tuning["items"]
        records.append(
            Markdown("{0}: {1} edits to fit to, {2} to choose by, {3} held out.").format(
                stored_at, items["fit"], items["choose"], items["held_out"]
            )
        )
        beside |= {(tuning["precision"], name): figures for name, figures in tuning["baseline"].items()}
        points |= {(tuning["precision"], point["evaluations"]): point for point in tuning["points"]}
    if not points:
        return Markdown("Not measured on a GPU yet.")
    rows: list[list[object]] = []
    for number in sorted({number for _, number in points}):
        of_number = [points.get((precision, number)) for precision in PRECISIONS]
        plain = of_number[0] and distances(of_number[0]["distances"]["plain steps"])
        rows.append([number, *(point and _cell(point) for point in of_number), plain])
    for name in dict.fromkeys(name for _, name in beside):
        figures = [beside.get((precision, name)) for precision in PRECISIONS]
        label = f"28, {name}" if name in ("in float32", "as diffusers runs it") else name
        rows.append([label, *(values and distances(values) for values in figures), None])
    filled = [[cell or "" for cell in row] for row in rows]
    return paragraphs([table(HEADER, filled), bullets(records)])


def distances(figures: dict[str, Any]) -> str:
    """The mean with its interval, and the median."""
    low, high = figures["mean_interval"]
    return f"{figures['mean']:.4f} ({low:.4f} to {high:.4f}), {figures['median']:.4f}"


def _cell(point: dict[str, Any]) -> str:
    told = point["closeness"] if point["verdict"] == "passes" else point["verdict"]
    return f"{distances(point['distances']['fitted'])}: {told}"
