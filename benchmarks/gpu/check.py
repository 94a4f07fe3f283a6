"""What the checks of this package share: their options, the test for a GPU, times on it, and their report as JSON."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

NO_GPU: Final = 3
"""Exit code where there is no CUDA device."""


def option_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option `--out`; `description` is the docstring of the check, which `--help` prints as it is."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    return parser


def has_gpu() -> bool:
    """Whether there is a CUDA device; prints a message if there is none."""
    import torch

    if not torch.cuda.is_available():
        print("This machine has no CUDA device; run this on one that has.", file=sys.stderr)
        return False
    return True


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Seconds on the GPU that `call` takes, and its result."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    result = call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000, result


def now() -> float:
    """Seconds on the host's clock when everything on the GPU has ended."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def write_report(report: Mapping[str, Any], out: Path | None) -> None:
    """Write `report` to the file `out`, if there is one."""
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n")
