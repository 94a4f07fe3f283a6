"""How far images are from those of 28 steps, and what a judge accepts, from `images-*.json` of the study of tuning."""

from __future__ import annotations

from typing import Any

from kontext_fast.report.text.markup import Markdown, bullets, paragraphs, table
from tools.docs.blocks.tunings import distances
from tools.docs.doc_context import DocContext

HEADER = ("evaluations", "to the images of 28 steps", "accepted", "of open edits", "of edits with one answer")
_SHARES = ("accepted", "accepted_of_open", "accepted_of_single_answer")


def render(context: DocContext) -> Markdown:
    """A table for each study."""
    return paragraphs(part for at, study in context.stored("images-*.json") for part in _study(at, study))


def _study(at: Markdown, study: dict[str, Any]) -> tuple[Markdown, Markdown]:
    rows = ((row["rule"], distances(row["distances_to_28_steps"]), *_accepted(row)) for row in study["rows"])
    where = Markdown("{0} held-out edits in {1}: {2}.").format(study["items"], study["precision"], at)
    return table(HEADER, rows), bullets([where])


def _accepted(row: dict[str, Any]) -> list[str]:
    return [f"{row[name]['accepted']} of {row[name]['of']}" for name in _SHARES]
