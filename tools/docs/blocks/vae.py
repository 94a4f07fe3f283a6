"""Times and errors of the VAE in each layout, as written by `benchmarks/gpu/vae_check.py --out .../vae.json`."""

from __future__ import annotations

from typing import Any

from kontext_fast.report.text.markup import Markdown, bullets, code_span, paragraphs, table
from tools.docs.doc_context import DocContext

HEADER = ("", "encode", "error", "decode", "error")


def render(context: DocContext) -> Markdown:
    """A table for each file below the folder of results; errors are relative to float32."""
    reports = [_of_report(*stored) for stored in context.stored("vae.json")]
    return paragraphs(reports or ["Not measured on a GPU yet."])


def _of_report(link: Markdown, report: dict[str, Any]) -> Markdown:
    rows = (
        (
            name if name == "as it is" else code_span(name),
            *(cell for stage in ("encode", "decode") for cell in _cells(measured[stage])),
        )
        for name, measured in report["variants"].items()
    )
    size = report["size"]
    where = Markdown("One image of {0}x{0} in bfloat16 on {1}; errors are relative to float32: {2}.").format(
        size, report["gpu"], link
    )
    return paragraphs([table(HEADER, rows), bullets([where])])


def _cells(measured: dict[str, float]) -> tuple[str, str]:
    return f"{measured['ms']:.0f} ms", f"{measured['error']:.4f}"
