"""Times and errors of the VAE in each layout, as written by `benchmarks/gpu/vae_check.py --out .../vae.json`."""

from __future__ import annotations

from typing import Any

from kontext_fast.report.text.markup import bullets, paragraphs, table
from tools.docs.doc_context import DocContext

HEADER = ("", "encode", "error", "decode", "error")


def render(context: DocContext) -> str:
    """A table for each file below the folder of results; errors are relative to float32."""
    return paragraphs(_of_report(*stored) for stored in context.stored("vae.json")) or "Not measured on a GPU yet."


def _of_report(link: str, report: dict[str, Any]) -> str:
    rows = (
        (
            name if name == "as it is" else f"`{name}`",
            *(cell for stage in ("encode", "decode") for cell in _cells(measured[stage])),
        )
        for name, measured in report["variants"].items()
    )
    size = report["size"]
    where = f"One image of {size}x{size} in bfloat16 on {report['gpu']}; errors are relative to float32: {link}."
    return paragraphs([table(HEADER, rows), bullets([where])])


def _cells(measured: dict[str, float]) -> tuple[str, str]:
    return f"{measured['ms']:.0f} ms", f"{measured['error']:.4f}"
