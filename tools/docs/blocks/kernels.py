"""Times of the kernels of one step by what they do, as written by `benchmarks/gpu/kernel_check.py --out FILE`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from kontext_fast.report.text.markup import Markdown, bullets, code_span, paragraphs, table
from tools.docs.doc_context import DocContext

FILE = "kernel_timing.json"
HEADER = ("step", "attention", "matrix products", "element by element", "all kernels", "launches")


def render(context: DocContext) -> Markdown:
    """A table for each file below the folder of results; each stage is timed alone, so gaps between them are not in."""
    reports = [_of_report(*stored) for stored in context.stored(FILE)]
    return paragraphs(reports or ["The kernels were not timed on a GPU yet."])


def _of_report(link: Markdown, report: dict[str, Any]) -> Markdown:
    steps: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for timing in report["timings"]:
        # Earlier reports have a step without the tokens of the reference, too, which no preset runs.
        if timing["step"].startswith("full"):
            steps[timing["step"]].append(timing)
    wrong = [check for check in report["checks"] if not check["writes_what_it_should"]]
    worst = max(report["checks"], key=_excess)
    total = len(report["checks"])
    passed = (
        f"{len(wrong)} of {total} kernel checks failed"
        if wrong
        else f"All {total} kernel checks passed, with no out-of-bounds writes"
    )
    return paragraphs(
        [
            table(HEADER, (tuple(_cells(name, timings)) for name, timings in steps.items())),
            bullets(
                [
                    Markdown("{}, torch {}, Triton {}: {}, with every kernel by itself.").format(
                        report["gpu"], report["torch"], report["triton"], link
                    ),
                    Markdown("{}. Largest error relative to eager PyTorch in the same dtype: {}, {}.").format(
                        passed, code_span(worst["operation"]), f"{_excess(worst):.2f}x"
                    ),
                ]
            ),
        ]
    )


def _excess(check: dict[str, Any]) -> float:
    """The error over that of plain PyTorch; what is exact in both is as good."""
    return float(check["error"] / check["error_of_plain_pytorch"]) if check["error_of_plain_pytorch"] else 1.0


def _cells(name: str, timings: list[dict[str, Any]]) -> Iterator[str]:
    kinds: dict[str, list[dict[str, Any]]] = {"attention": [], "linear": [], "": []}
    for timing in timings:
        kinds[next(kind for kind in kinds if kind in timing["stage"])].append(timing)
    yield name
    for kind, of_kind in kinds.items():
        seconds = sum(map(_seconds, of_kind))
        unit, rate, digits = ("TB/s", "bytes_per_second", 2) if kind == "" else ("TFLOP/s", "flop_per_second", 0)
        done = sum((timing[rate] or 0.0) * _seconds(timing) for timing in of_kind) / seconds
        yield f"{1000 * seconds:.1f} ms, {done / 1e12:.{digits}f} {unit}"
    yield f"{1000 * sum(map(_seconds, timings)):.1f} ms"
    yield str(sum(timing["times_per_step"] for timing in timings))


def _seconds(timing: dict[str, Any]) -> float:
    return float(timing["seconds"] * timing["times_per_step"])
