"""How verdicts answer planted faults, as written by `research.faults.study` and kept in `.../faults*.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kontext_fast.report.text.markup import Markdown, bullets, markdown, paragraphs, table
from kontext_fast.report.text.quality import joined
from tools.docs.doc_context import DocContext

Answers = Sequence[Mapping[str, Any]]
HARMLESS = "harmless"
"""The family of `research.faults` of what is no fault."""


def render(context: DocContext) -> Markdown:
    """A table by family for each file below the folder of results, the newest first, with every mistake."""
    reports = [_of_study(*stored) for stored in context.stored("faults*.json")]
    return paragraphs(reports[::-1] or ["Not run on a GPU yet."])


def _of_study(link: Markdown, report: Mapping[str, Any]) -> Markdown:
    answers: Answers = report["answers"]
    counts = sorted({answer["items"] for answer in answers})
    families = sorted({answer["family"] for answer in answers}, key=lambda family: (family == HARMLESS, family))
    levels = [f"L3 at {count} items" for count in counts]
    header = ("family", "verdicts", *levels, f"without the five rules at {counts[-1]}")
    rows = [_row(family, [answer for answer in answers if answer["family"] == family], counts) for family in families]
    lines = [
        Markdown("On {}, {} seeds an item and {} steps, at {}: {}.").format(
            report["gpu"], str(report["seeds"]), str(report["steps"]), report["commit"], link
        ),
        *_mistakes(answers),
    ]
    rules = report.get("rules")
    return paragraphs([*([Markdown("{}:").format(rules)] if rules else []), table(header, rows), bullets(lines)])


def _mistakes(answers: Answers) -> Iterator[Markdown]:
    """What each fault that is missed is called, and at how many items; and each harmless change called a loss."""
    counts: dict[tuple[str, int], dict[str, list[str]]] = {}
    for answer in answers:
        if (answer["level"] == "L3") is (answer["family"] == HARMLESS):
            of_change = counts.setdefault((answer["fault"], answer["seed"]), {})
            of_change.setdefault(answer["level"], []).append(str(answer["items"]))
    for (change, seed), of_level in counts.items():
        if "L3" in of_level:
            line = Markdown("Called a loss without one: {} with seed {} at {} items.")
            yield line.format(change, str(seed), joined(of_level["L3"]))
        else:
            levels = ", ".join(f"{level} at {joined(of)}" for level, of in of_level.items())
            yield Markdown("Missed: {} is called {} items.").format(change, levels)


def _row(family: str, answers: Answers, counts: Sequence[int]) -> tuple[Markdown | str, ...]:
    by_count = [[answer for answer in answers if answer["items"] == count] for count in counts]
    return (
        markdown(family),
        str(len(by_count[-1])),
        *(str(sum(answer["level"] == "L3" for answer in of_count)) for of_count in by_count),
        str(sum(answer["before"] == "L3" for answer in by_count[-1])),
    )
