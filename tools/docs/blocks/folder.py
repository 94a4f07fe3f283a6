"""A folder of images against the same edits from memory, in the form of `benchmarks/gpu/folder_check.py --out FILE`."""

from __future__ import annotations

from typing import Any

from kontext_fast.report.text.markup import Markdown, bullets, code_span
from tools.docs.doc_context import DocContext


def render(context: DocContext) -> Markdown:
    """A line for each file below the folder of results."""
    reports = [_of_report(*stored) for stored in context.stored("folder.json")]
    return bullets(reports) if reports else Markdown("Not measured on a GPU yet.")


def _of_report(link: Markdown, report: dict[str, Any]) -> Markdown:
    blocks = report["blocks"]
    of_blocks = [(block["folder_s"] / block["images"]) / (block["memory_s"] / block["from_memory"]) for block in blocks]
    return Markdown(
        "{} images of {}x{} with {} on {}, `{}`: {} s an image from the folder, **{} times** one from memory (blocks "
        "of {}: {} to {}; {} of the images were made from memory, too): {}."
    ).format(
        *(report["images"], report["size"], report["size"], code_span(report["preset"]), report["gpu"]),
        report["checkpoint"],
        f"{sum(block['folder_s'] for block in blocks) / report['images']:.3f}",
        f"{report['ratio']:.3f}",
        blocks[0]["images"], f"{min(of_blocks):.3f}", f"{max(of_blocks):.3f}", report["from_memory"], link,
    )  # fmt: skip
