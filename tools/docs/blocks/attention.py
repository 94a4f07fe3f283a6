"""The engine's attention kernels compared, as measured by `attention_check`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kontext_fast.analysis import format as fmt
from kontext_fast.report.text.markup import Markdown, bullets, code_span, paragraphs, table
from tools.docs.doc_context import DocContext

_INPUTS = ("even", "peaked", "outliers")
HEADER = ("kernel", "alone", *(f"error, {kind}" for kind in _INPUTS), "a step in fp8", "latents from the first")


def render(context: DocContext) -> Markdown:
    """A table for each file below the folder of results."""
    reports = [_of_report(*stored) for stored in context.stored("attention.json")]
    return paragraphs(reports or ["Not measured on a GPU yet."])


def _of_report(link: Markdown, report: dict[str, Any]) -> Markdown:
    steps = fmt.count(report["steps"], "step")
    return paragraphs(
        [
            table(HEADER, (tuple(_cells(name, kernel)) for name, kernel in report["kernels"].items())),
            bullets(
                [
                    Markdown(
                        "{gpu}, torch {torch}, {tokens} tokens of one sample: {link}. "
                        "A step is the mean over {steps} of one edit of `random`."
                    ).format(**report | {"link": link, "steps": steps}),
                    *(
                        Markdown("{} did not run: {}.").format(code_span(name), reason)
                        for name, reason in report["refused"].items()
                    ),
                ]
            ),
        ]
    )


def _cells(name: str, kernel: dict[str, Any]) -> Iterator[str]:
    yield code_span(name)
    yield f"{1e3 * kernel['seconds']:.2f} ms, {kernel['flop_per_second'] / 1e12:.0f} TFLOP/s"
    yield from (f"{kernel['errors'][kind]:.2g}" for kind in _INPUTS)
    yield f"{1e3 * kernel['seconds_per_step']:.1f} ms"
    yield "equal" if kernel["latents_apart"] == 0 else f"{kernel['latents_apart']:.2g}"
