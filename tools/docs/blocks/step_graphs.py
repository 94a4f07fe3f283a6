"""Steps with and without CUDA graphs, in the form of `benchmarks/gpu/step_graphs_check.py --out FILE`."""

from __future__ import annotations

from typing import Any

from kontext_fast.report.text.markup import Markdown, bullets, code_span, paragraphs, table
from tools.docs.doc_context import DocContext

HEADER = ("preset", "size", "a step", "with a graph", "host 10 us slower", "with a graph", "recording", "memory")


def render(context: DocContext) -> Markdown:
    """A table for each file below the folder of results."""
    reports = [_of_report(*stored) for stored in context.stored("step_graphs.json")]
    return paragraphs(reports or ["Not measured on a GPU yet."])


def _of_report(link: Markdown, report: dict[str, Any]) -> Markdown:
    presets = {name: of for name, of in report.items() if isinstance(of, dict)}
    rows = [
        (
            code_span(name),
            f"{size}x{size}",
            *(f"{times[label]:.1f} ms" for times in of_hosts.values() for label in ("without", "with")),
            f"{recorded['record_s']:.2f} s",
            f"{recorded['pool_bytes_with_earlier_ones'] / 2**30:.1f} GiB",
        )
        for name, of in presets.items()
        for size, of_hosts in of["ms_per_step"].items()
        for recorded in [of["recorded"][f"{size}x{size}, 1 at once"]]
    ]
    compared = [equal for of in presets.values() for equal in of["equal"].values()]
    kernels = {str(of["attention_kernel"]) for of in presets.values() if of["ms_per_step"]}
    lines = [
        Markdown("One image on {0}, attention by {1}; memory is that of all layouts so far: {2}.").format(
            report["gpu"], ", ".join(sorted(kernels)), link
        ),
        f"{sum(compared)} of {len(compared)} comparisons with the same engine without graphs found every bit equal: "
        f"{', '.join(presets)}, one image and two, true CFG, and copies in threads.",
    ]
    return paragraphs([table(HEADER, rows), bullets(lines)])
