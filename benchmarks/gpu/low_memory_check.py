"""Make 1024x1024 edits of the checkpoint `random` on a GPU with at most 22 GiB of its memory, loading included.

Usage: python -m benchmarks.gpu.low_memory_check [--gib 22] [--steps 4] [--preset low_memory] [--out FILE.json]

Below 22 GiB the preset is `low_memory(modulations=host)`, as in `--gib 15.5` for cards of 16 GB. The allocator of this
process raises an out-of-memory error at the cap, less what is in use on the card before, which is the context of CUDA:
an image at the end is the proof. Exit code 0: done; 1: over the cap; 3: no GPU.
"""

from __future__ import annotations

import json
import sys
import time

import torch

from benchmarks.gpu.check import NO_GPU, has_gpu, option_parser, write_report
from kontext_fast.datasets.shapes import held_out
from kontext_fast.errors import OutOfMemory
from kontext_fast.optimizations.acceleration import apply_plan
from kontext_fast.optimizations.presets import PEAK_GIB, resolve
from kontext_fast.pipeline.device import Machine
from kontext_fast.pipeline.edit import EditRequest, edit
from kontext_fast.pipeline.load import load

_GIB = 2**30
_GIB_OF_LOW_MEMORY = PEAK_GIB["low_memory"]


def main() -> int:
    """Set the cap, load, edit twice, print and store."""
    parser = option_parser(__doc__)
    parser.add_argument("--gib", type=float, default=22.0, help="cap of this process on the GPU's memory")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--preset")
    arguments = parser.parse_args()
    preset = arguments.preset or (
        "low_memory" if arguments.gib >= _GIB_OF_LOW_MEMORY else "low_memory(modulations=host)"
    )
    if not has_gpu():
        return NO_GPU
    device = torch.device("cuda", torch.cuda.current_device())
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.synchronize(device)  # which makes the context
    context = total - torch.cuda.mem_get_info(device)[0]
    torch.cuda.set_per_process_memory_fraction((arguments.gib * _GIB - context) / total, device)
    report = {"preset": preset, "cap_gib": arguments.gib, "gpu": torch.cuda.get_device_name(device)}
    report["context_gib"] = context / _GIB

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
        plan = resolve(preset, Machine.detect(device), architecture_only=True)
        began = time.perf_counter()
        loaded = load("random", device=device, in_host_memory=plan.in_host_memory)
        note("load", began)
        began = time.perf_counter()
        acceleration = apply_plan(plan, loaded.pipe, device)
        note("apply", began)
        request = EditRequest("make it red", held_out(1)[0].render(1024), steps=arguments.steps, seed=0)
        for stage in ("first edit", "second edit"):
            began = time.perf_counter()
            result = edit(loaded.pipe, request)
            note(stage, began)
    except (OutOfMemory, torch.OutOfMemoryError) as error:
        print(f"over the cap of {arguments.gib} GiB: {error}", file=sys.stderr)
        return 1
    print(acceleration.describe())
    print(f"{result.images[0].size[0]}x{result.images[0].size[1]} under a cap of {arguments.gib} GiB")
    write_report(report, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
