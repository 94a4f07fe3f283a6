"""Errors relative to diffusers, as written by `precision_check --out FILE`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kontext_fast.analysis import format as fmt
from kontext_fast.report.text.markup import Markdown, bullets, code_span, paragraphs, table
from tools.docs.doc_context import DocContext

HEADER = ("", "first velocity, from bfloat16", "final latents", "first velocity, from float32", "final latents")
_TRUTHS = ("against diffusers, bfloat16", "against diffusers, float32")
_STAGES = ("first step", "final latents")


def render(context: DocContext) -> Markdown:
    """A table for each file below the folder of results: relative errors, as means over items."""
    reports = [_of_report(*stored) for stored in context.stored("precision*.json")]
    return paragraphs(reports or ["Not measured yet."])


def _of_report(link: Markdown, report: dict[str, Any]) -> Markdown:
    width, height = report["size"]
    size, steps = f"{width}x{height}", fmt.count(report["steps"], "step")
    edits = fmt.count(report["items"], "edit")
    device = "a CPU, where plain PyTorch stands in for the kernels" if report["device"] == "cpu" else report["device"]
    return paragraphs(
        [
            table(HEADER, (tuple(_cells(name, errors)) for name, errors in report["errors"].items())),
            bullets(
                [
                    Markdown("{} on {}, {} of {}, {}, torch {}: {}.").format(
                        code_span(report["checkpoint"]), device, edits, size, steps, report["torch"], link
                    )
                ]
            ),
        ]
    )


def _cells(name: str, errors: dict[str, dict[str, float]]) -> Iterator[str]:
    yield name if name.startswith("diffusers") else code_span(name)
    for truth in _TRUTHS:
        for stage in _STAGES:
            error = errors[truth][stage]
            yield "equal" if error == 0 else f"{error:.2g}"
