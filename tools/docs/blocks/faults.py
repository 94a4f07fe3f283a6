"""How verdicts answer planted faults, as written by `research.faults.study` and kept in `.../faults*.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kontext_fast.report.text.markup import Markdown, bullets, markdown, paragraphs, table
from tools.docs.doc_context import DocContext

Answers = Sequence[Mapping[str, Any]]
HARMLESS = "harmless"
"""The family of `research.faults` of what is no fault."""


def render(context: DocContext) -> Markdown:
    """A table by family for each file below the folder of results, and what was missed or called a loss by mistake."""
    reports = [_of_study(*stored) for stored in context.stored("faults*.json")]
    return paragraphs(reports or ["Not run on a GPU yet."])


def _of_study(link: Markdown, report: Mapping[str, Any]) -> Markdown:
    answers: Answers = report["answers"]
    counts = sorted({answer["items"] for answer in answers})
    families = sorted({answer["family"] for answer in answers}, key=lambda family: (family == HARMLESS, family))
    header = ("family", "verdicts", *(f"L3 at {count} items" for count in counts), "without the five rules")
    rows = [_row(family, [answer for answer in answers if answer["family"] == family], counts) for family in families]
    most = [answer for answer in answers if answer["items"] == counts[-1]]
    lines = [
        Markdown("On {}, {} seeds an item and {} steps, at {}: {}.").format(
            report["gpu"], str(report["seeds"]), str(report["steps"]), report["commit"], link
        ),
        *(
            Markdown("Missed: {} is called {}.").format(answer["fault"], answer["level"])
            for answer in most
            if answer["family"] != HARMLESS and answer["level"] != "L3"
        ),
        *(
            Markdown("Called a loss without one: {} with seed {}.").format(answer["fault"], str(answer["seed"]))
            for answer in most
            if answer["family"] == HARMLESS and answer["level"] == "L3"
        ),
    ]
    rules = report.get("rules")
    return paragraphs([*([Markdown("{}:").format(rules)] if rules else []), table(header, rows), bullets(lines)])


def _row(family: str, answers: Answers, counts: Sequence[int]) -> tuple[Markdown | str, ...]:
    by_count = [[answer for answer in answers if answer["items"] == count] for count in counts]
    return (
        markdown(family),
        str(len(by_count[-1])),
        *(str(sum(answer["level"] == "L3" for answer in of_count)) for of_count in by_count),
        str(sum(answer["before"] == "L3" for answer in by_count[-1])),
    )
