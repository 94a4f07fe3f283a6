"""The passage on kernels adds up what `benchmarks/gpu/kernel_check.py` wrote."""

from __future__ import annotations

import json
from pathlib import Path

from tools.docs.blocks import kernels
from tools.docs.doc_context import DocContext
from tools.docs.result_tree import find_published


def timing(stage: str, times: int, seconds: float, **rate: float) -> dict[str, object]:
    rates = {"bytes_per_second": None, "flop_per_second": None} | rate
    return {"step": "full", "stage": stage, "times_per_step": times, "seconds": seconds} | rates


def check(operation: str, *, error: float, plain: float, right: bool) -> dict[str, object]:
    return {"operation": operation, "error": error, "error_of_plain_pytorch": plain, "writes_what_it_should": right}


def write(folder: Path) -> None:
    folder.mkdir(parents=True)
    report = {
        "gpu": "Imaginary GPU",
        "torch": "2.11.0",
        "triton": "3.6.0",
        "checks": [
            check("gelu", error=0.0, plain=0.0, right=True),
            check("linear", error=0.003, plain=0.002, right=False),
        ],
        "timings": [
            timing("attention", 10, 2e-3, flop_per_second=600e12),
            timing("linear 3072x9216 image", 10, 1e-3, flop_per_second=700e12),
            timing("linear 3072x9216 text", 5, 3e-3, flop_per_second=500e12),
            timing("join_linear_gelu single", 5, 3e-3, flop_per_second=500e12, bytes_per_second=1e11),
            timing("gelu image", 5, 1e-4, bytes_per_second=4e12),
            timing("gelu image", 5, 9.0, bytes_per_second=4e12) | {"step": "reuse fp8"},
        ],
    }
    (folder / "kernel_timing.json").write_text(json.dumps(report))


def test_kernels_block_sums_by_category(tmp_path: Path) -> None:
    write(tmp_path / "results" / "card")
    text = kernels.render(DocContext(find_published(tmp_path / "results"), to_root="../"))
    row = next(line for line in text.splitlines() if line.startswith("| full"))
    assert row == "| full | 20.0 ms, 600 TFLOP/s | 40.0 ms, 550 TFLOP/s | 0.5 ms, 4.00 TB/s | 60.5 ms | 35 |"
    assert "reuse" not in text
    assert "1 of 2 kernel checks failed" in text
    assert "`linear`, 1.50x" in text
    assert "(../results/card/kernel_timing.json)" in text


def test_kernels_block_without_timings_says_so(tmp_path: Path) -> None:
    assert "not timed on a GPU yet" in kernels.render(DocContext(find_published(tmp_path)))
