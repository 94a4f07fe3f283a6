"""What the kernels of one step took, as `benchmarks/gpu/kernel_check.py --out FILE` found it, by what they do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from kontext_fast.report.text.markup import bullets, paragraphs, table
from tools.docs.doc_context import DocContext

FILE = "kernel_timing.json"
HEADER = ("step", "attention", "matrix products", "element by element", "all kernels", "launches")


def render(context: DocContext) -> str:
    """A table for each file below the folder of results; each stage is timed alone, so gaps between them are not in."""
    return paragraphs(_of_one(*found) for found in context.stored(FILE)) or "The kernels were not timed on a GPU yet."


def _of_one(link: str, report: dict[str, Any]) -> str:
    steps: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for timing in report["timings"]:
        # Earlier reports have a step without the tokens of the reference, too, which no preset runs.
        if timing["step"].startswith("full"):
            steps[timing["step"]].append(timing)
    wrong = [check for check in report["checks"] if not check["writes_what_it_should"]]
    worst = max(report["checks"], key=_excess)
    return paragraphs(
        [
            table(HEADER, (tuple(_cells(name, timings)) for name, timings in steps.items())),
            bullets(
                [
                    f"{report['gpu']}, torch {report['torch']}, Triton {report['triton']}: {link}, with "
                    "every kernel by itself.",
                    f"{len(report['checks']) - len(wrong)} of {len(report['checks'])} checks wrote what they should "
                    f"and no more; furthest from plain PyTorch in the same dtype was `{worst['operation']}`, whose "
                    f"error was {_excess(worst):.2f} times as large.",
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
        kinds[next(kind for kind in kinds if timing["stage"].startswith(kind))].append(timing)
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
