"""What `kontext tune --as-accurate` showed in bf16, in words: on its held-out edits, and on others."""

from __future__ import annotations

from typing import Any

from kontext_fast.report.text.markup import Markdown
from tools.docs.doc_context import DocContext

PRECISION = "bf16"


def render(context: DocContext) -> Markdown:
    """Empty where nothing was shown to be as accurate."""
    tuning: dict[str, Any] = dict(context.stored(f"as-accurate-{PRECISION}.json")).popitem()[1]
    shown = [point for point in tuning["points"] if point["closeness"] == "no farther"]
    if not shown:
        return Markdown("")
    (point,) = shown
    ratio = point["ratio_of_fitted_to"]["as diffusers runs it"]
    low, high = ratio["interval"]
    confirmed = [
        study["items"]
        for _, study in context.stored(f"confirm-{PRECISION}.json")
        for row in study["rows"]
        if (row["evaluations"], row["closeness"]) == (point["evaluations"], "no farther")
    ]
    return Markdown(
        "On the bundled `tiny`, {0} fitted evaluations are no farther from where the model's own equation leads than "
        "the {1} steps that everybody runs: {2} times as far for a typical edit ({3} to {4}), and {5} in the mean "
        "where {1} steps have {6}, on {7} held-out edits{8}."
    ).format(
        point["evaluations"], tuning["steps"], f"{ratio['value']:.2f}", f"{low:.2f}", f"{high:.2f}",
        f"{point['distances']['fitted']['mean']:.4f}",
        f"{tuning['baseline']['as diffusers runs it']['mean']:.4f}", tuning["items"]["held_out"],
        f", and again on {confirmed[-1]} others" if confirmed else "",
    )  # fmt: skip
