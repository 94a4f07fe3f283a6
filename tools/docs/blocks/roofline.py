"""Where the time of a step goes and its lower bound, as written by `kontext bench --roofline`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kontext_fast.records.schema import upgraded_kind
from kontext_fast.report.text.markup import Markdown, bullets, code_span, paragraphs, table
from tools.docs.doc_context import DocContext

HEADER = ("preset", "step", "while profiled", "floor", "products", "attention", "element by element", "idle")
_CATEGORIES = ("linear", "attention", "element-wise")


def render(context: DocContext) -> Markdown:
    """A table for each file below the folder of results."""
    reports = [_of_report(*stored) for stored in context.stored("roofline.json")]
    return paragraphs(reports or ["Not measured on a GPU yet."])


def _of_report(link: Markdown, report: dict[str, Any]) -> Markdown:
    rooflines = report["rooflines"]
    first, best = rooflines[0], rooflines[0]["ceilings"]
    tokens = first["tokens"]
    return paragraphs(
        [
            table(
                HEADER,
                (tuple(_cells(roofline["preset"], step)) for roofline in rooflines for step in roofline["steps"]),
            ),
            bullets(
                [
                    Markdown(
                        "{} on {}; tokens: {text} of text, {image} of the image, {reference} of the reference. "
                        "Every kernel by itself: {link}."
                    ).format(code_span(report["checkpoint"]), first["device"], **tokens, link=link),
                    "In brackets: the share of the best rate measured in the same process. For the first preset that "
                    f"was {best['linear_flop'] / 1e12:.0f} TFLOP/s in products, {best['attention_flop'] / 1e12:.0f} in "
                    f"attention, and {best['copy_bytes'] / 1e12:.2f} TB/s in copies.",
                ]
            ),
        ]
    )


def _cells(preset: str, step: dict[str, Any]) -> Iterator[str]:
    taken_s = dict.fromkeys(_CATEGORIES, 0.0)
    for kernel in step["kernels"]:
        taken_s[kernel["category"]] += kernel["seconds"]
    yield from (code_span(preset), f"{upgraded_kind(step['kind'])} ({step['step']})")
    yield _milliseconds(sum(taken_s.values()) + step["idle_s"])
    yield _milliseconds(sum(step["floors_s"].values()))
    for category in _CATEGORIES:
        reached = f" ({step['floors_s'][category] / taken_s[category]:.0%})" if taken_s[category] else ""
        yield _milliseconds(taken_s[category]) + reached
    yield _milliseconds(step["idle_s"])


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"
