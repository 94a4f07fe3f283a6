"""What `--as-accurate` was told of each number, from `as-accurate-*.json`, and whether other edits said the same."""

from __future__ import annotations

from typing import Any

from kontext_fast.report.text.markup import Markdown, bullets, paragraphs, table
from tools.docs.blocks.tunings import distances
from tools.docs.doc_context import DocContext


def render(context: DocContext) -> Markdown:
    """A row for each question in its order, a column for each precision; then the confirmations on other edits."""
    tunings = {tuning["precision"]: (at, tuning) for at, tuning in context.stored("as-accurate-*.json")}
    if not tunings:
        return Markdown("Not measured on a GPU yet.")
    answers = {
        (answer["evaluations"], precision): f"{distances(answer)}: {answer['closeness']}"
        for precision, (_, tuning) in tunings.items()
        for answer in tuning["asked"]
    }
    baseline = (distances(tuning["baseline"]["in float32"]) for _, tuning in tunings.values())
    rows = [
        *(
            (number, *(answers.get((number, precision), "not asked") for precision in tunings))
            for number in sorted({number for number, _ in answers}, reverse=True)
        ),
        ("28 steps", *baseline),
    ]
    held_out = [
        Markdown("{0}: {1} held-out edits: {2}.").format(precision, tuning["items"]["held_out"], at)
        for precision, (at, tuning) in tunings.items()
    ]
    return paragraphs([table(("evaluations", *tunings), rows), bullets([*held_out, *_confirmed(context)])])


def _confirmed(context: DocContext) -> list[Markdown]:
    """A sentence for each preset and its other edits."""
    return [_sentence(at, study, row) for at, study in context.stored("confirm-*.json") for row in study["rows"]]


def _sentence(at: Markdown, study: dict[str, Any], row: dict[str, Any]) -> Markdown:
    figures = row["distances"]
    return Markdown("{0}, {1} evaluations on {2} other edits: {3}, where 28 steps have {4}: {5} ({6}).").format(
        study["precision"], row["evaluations"], study["items"], distances(figures["fitted"]),
        distances(figures["baseline in float32"]), row["closeness"], at,
    )  # fmt: skip
