"""Make one 1024x1024 edit of the checkpoint `random` on a GPU that is not allowed more than 22 GiB, load included.

Usage: python -m benchmarks.gpu.low_memory_check [--gib 22] [--steps 4] [--preset low_memory] [--out FILE.json]

The allocator of this process raises an out-of-memory error at the cap, so an image at the end is the proof. The driver
and the libraries take about half a GiB more, which is listed apart. Exit code 0: done; 1: over the cap; 3: no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from kontext_fast.errors import OutOfMemory
from kontext_fast.optimizations.machine import Machine
from kontext_fast.optimizations.plan import resolve
from kontext_fast.pipeline.edit import EditRequest, edit
from kontext_fast.pipeline.load import load

_GIB = 2**30


def main() -> int:
    """Cap, load, edit twice, and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=22.0, help="cap of the process, of the GPU's memory")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--preset", default="low_memory")
    parser.add_argument("--out", type=Path, help="where to write the numbers, as JSON")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here.", file=sys.stderr)
        return 3
    device = torch.device("cuda", torch.cuda.current_device())
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(arguments.gib * _GIB / total, device)
    report = {"preset": arguments.preset, "cap_gib": arguments.gib, "gpu": torch.cuda.get_device_name(device)}

    def note(stage: str, began: float) -> None:
        torch.cuda.synchronize(device)
        free, _ = torch.cuda.mem_get_info(device)
        report[stage] = {
            "seconds": time.perf_counter() - began,
            "allocated_peak_gib": torch.cuda.max_memory_allocated(device) / _GIB,
            "reserved_peak_gib": torch.cuda.max_memory_reserved(device) / _GIB,
            "in_use_on_the_gpu_gib": (total - free) / _GIB,
        }
        print(stage, json.dumps(report[stage]), flush=True)
        torch.cuda.reset_peak_memory_stats(device)

    try:
        plan = resolve(arguments.preset, Machine.detect(device), architecture_only=True)
        began = time.perf_counter()
        loaded = load("random", device=device, in_host_memory=plan.in_host_memory)
        note("load", began)
        began = time.perf_counter()
        acceleration = plan.apply(loaded.pipe, device)
        note("apply", began)
        request = EditRequest("make it red", _picture(), steps=arguments.steps, seed=0)
        for stage in ("first edit", "second edit"):
            began = time.perf_counter()
            result = edit(loaded.pipe, request)
            note(stage, began)
    except (OutOfMemory, torch.OutOfMemoryError) as error:
        print(f"over the cap of {arguments.gib} GiB: {error}", file=sys.stderr)
        return 1
    print(acceleration.describe())
    print(f"{result.images[0].size[0]}x{result.images[0].size[1]} under a cap of {arguments.gib} GiB")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(report, indent=1))
    return 0


def _picture() -> object:
    from kontext_fast.datasets.shapes import held_out

    return held_out(1)[0].render(1024)


if __name__ == "__main__":
    sys.exit(main())
