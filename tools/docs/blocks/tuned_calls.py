"""What a call that differs from the fit loses, from every `calls.json` of `research.tuning.study`."""

from __future__ import annotations

from kontext_fast.report.text.markup import Markdown, bullets, code_span, paragraphs, table
from tools.docs.doc_context import DocContext


def render(context: DocContext) -> Markdown:
    """One row for each call, the newest of it; two columns for each preset."""
    studies = list(context.stored("calls.json"))
    if not studies:
        return Markdown("Not measured on a GPU yet.")
    cells: dict[str, dict[str, tuple[str, str]]] = {}
    for row in (row for _, study in studies for row in study["rows"]):
        ratio = row["ratio_to_plain_steps"]
        low, high = ratio["interval"]
        cells.setdefault(row["call"], {})[row["solver"]] = (
            f"{ratio['value']:.2f} ({low:.2f} to {high:.2f})", row["closeness"]
        )  # fmt: skip
    presets = sorted({preset for of_call in cells.values() for preset in of_call}, reverse=True)
    header = ["the call"]
    for preset in presets:
        header += [code_span(preset), "than its own steps"]
    rows = (
        (call, *(cell for preset in presets for cell in of_call.get(preset, ("", ""))))
        for call, of_call in cells.items()
    )
    records = (
        Markdown("{0}: {1} held-out edits, {2}, on {3}.").format(
            stored_at, study["items"], study["precision"], study["device"]
        )
        for stored_at, study in studies
    )
    return paragraphs([table(header, rows), bullets(records)])
