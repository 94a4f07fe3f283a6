"""Memory of an edit under a cap, as written by `benchmarks/gpu/low_memory_check.py --out .../low_memory*.json`."""

from __future__ import annotations

from typing import Any

from kontext_fast.report.text.markup import Markdown, bullets, code_span, paragraphs, table
from tools.docs.doc_context import DocContext

HEADER = ("", "time", "allocated at most", "reserved at most", "in use on the GPU afterwards")


def render(context: DocContext) -> Markdown:
    """A table for each file below the folder of results."""
    reports = [_of_report(*stored) for stored in context.stored("low_memory*.json")]
    return paragraphs(reports or ["Not run on a GPU yet."])


def _of_report(link: Markdown, report: dict[str, Any]) -> Markdown:
    stages = {name: stage for name, stage in report.items() if isinstance(stage, dict)}
    rows = (
        (
            name,
            f"{stage['seconds']:.1f} s",
            f"{stage['allocated_peak_gib']:.1f} GiB",
            f"{stage['reserved_peak_gib']:.1f} GiB",
            f"{stage['in_use_on_the_gpu_gib']:.1f} GiB",
        )
        for name, stage in stages.items()
    )
    cap = Markdown("{} under a cap of {} GiB on {}: {}.").format(
        code_span(report["preset"]), f"{report['cap_gib']:g}", report["gpu"], link
    )
    return paragraphs([table(HEADER, rows), bullets([cap])])
