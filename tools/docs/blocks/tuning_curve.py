"""What a fit comes to by the number of edits that it is fitted to, from `items-*.json` and the tuning in float32."""

from __future__ import annotations

from kontext_fast.report.text.markup import Markdown, table
from tools.docs.blocks.tunings import distances
from tools.docs.doc_context import DocContext

EVALUATIONS = 10
HEADER = ("edits fitted to", "edits chosen by", f"{EVALUATIONS} evaluations, float32", "of plain steps")


def render(context: DocContext) -> Markdown:
    """One row for each number of edits."""
    rows = {}
    for pattern in ("tune-float32*.json", "items-*.json"):
        for _, tuning in context.stored(pattern):
            for point in tuning["points"]:
                if point["evaluations"] == EVALUATIONS:
                    ratio = point["ratio_of_fitted_to"]["plain steps"]
                    low, high = ratio["interval"]
                    rows[tuning["items"]["fit"]] = (
                        tuning["items"]["choose"],
                        distances(point["distances"]["fitted"]),
                        f"{ratio['value']:.2f} ({low:.2f} to {high:.2f})",
                    )
    return table(HEADER, ((number, *rows[number]) for number in sorted(rows)))
