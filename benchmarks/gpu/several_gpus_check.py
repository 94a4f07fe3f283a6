"""Time one edit on all GPUs of this program against one of them, and compare the latents.

Usage: torchrun --nproc-per-node 2 -m benchmarks.gpu.several_gpus_check [--checkpoint random] [--size 1024]
       [--presets balanced,faithful] [--steps 6] [--out FILE.json]

Both are measured in the same processes on the same weights: alone, every process runs the whole edit by itself at the
same time. A step is the median between the ends of neighbouring steps on the GPU. The kernels of two steps are summed
by kind on every GPU; what a collective lasts on the GPU that came last is its transfer, and the rest of a step waiting.
Exit code 0: done; 1: latents differ by more than rounding; 3: no GPU.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from benchmarks.gpu.check import NO_GPU, has_gpu, option_parser, write_report
from kontext_fast.datasets.shapes import held_out
from kontext_fast.engine.dispatch import make_ops
from kontext_fast.engine.ranks import Ranks, join
from kontext_fast.engine.sequence_parallel import SequenceParallel, Transport
from kontext_fast.engine.transformer import EngineTransformer
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.techniques.engine import engine_of
from kontext_fast.pipeline.edit import EditRequest, edit, final_latents
from kontext_fast.pipeline.load import load

TRANSPORTS: tuple[Transport, ...] = ("collectives", "peer_memory")

ROUNDING = {"faithful": 0.02, "balanced": 0.1}
"""Relative error of latents that is no mistake: in bf16 and fp8."""

KINDS = (
    ("exchange", r"nccl|barrier|multimem"),
    ("attention", r"flash|fmha|sdpa|attention"),
    ("products", r"gemm|cutlass|nvjet|cublas|xmma|splitK"),
)
"""Of kernels, by what is in their names; all others are between the products."""


def main() -> int:
    """Load, compare, time, print and store."""
    parser = option_parser(__doc__)
    parser.add_argument("--checkpoint", default="random")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--presets", default="balanced,faithful")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--calls", type=int, default=5)
    arguments = parser.parse_args()
    if not has_gpu():
        return NO_GPU
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    ranks = join(int(os.environ["WORLD_SIZE"]), device)
    pipe = load(arguments.checkpoint, device=device).pipe
    (item,) = held_out(1)
    size = arguments.size
    request = EditRequest(
        "make the red circle blue", item.render(size), steps=arguments.steps, seed=1, size=(size, size)
    )
    report: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(device),
        "gpus": ranks.size,
        "torch": torch.__version__,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "checkpoint": arguments.checkpoint,
        "size": size,
        "steps": arguments.steps,
        "presets": {},
    }
    for preset in arguments.presets.split(","):
        report["presets"][preset] = measured(pipe, preset, request, ranks, arguments)
    if ranks.rank == 0:
        write_report(report, arguments.out)
    errors = [
        (preset, result["relative_error"])
        for preset, of_preset in report["presets"].items()
        for result in of_preset["together"].values()
    ]
    return int(any(error > ROUNDING.get(preset, 0.1) for preset, error in errors))


def measured(pipe: Any, preset: str, request: EditRequest, ranks: Ranks, arguments: Any) -> dict[str, Any]:
    """Of one preset: alone, and together by each transport."""
    with accelerate(pipe, preset, quiet=True, gpus=ranks.size) as acceleration:
        forward = engine_of(pipe.transformer)
        assert forward is not None
        weights = forward.engine.weights
        ops = make_ops(weights.device.type, weights.precision, forward.engine.ops.attention_kernel.name)
        forward.engine, forward.ranks = EngineTransformer(weights, ops), None
        alone = final_latents(pipe, [request])
        report: dict[str, Any] = {
            "attention": acceleration.facts["engine"]["attention_kernel"],
            "alone": times(pipe, request, arguments.calls, ranks),
            "together": {},
        }
        say(ranks, preset, "alone", report["alone"])
        for transport in TRANSPORTS:
            forward.engine = EngineTransformer(weights, ops, parallel=SequenceParallel(ranks, transport))
            forward.ranks = ranks
            try:
                together = final_latents(pipe, [request])
            except RuntimeError as error:  # such as memory that cannot be shared on this host
                say(ranks, preset, transport, error)
                report.setdefault("not_measured", {})[transport] = str(error)
                continue
            result = {
                "relative_error": float((together.double() - alone.double()).norm() / alone.double().norm()),
                "bit_equal": bool(torch.equal(together, alone)),
                **times(pipe, request, arguments.calls, ranks),
            }
            report["together"][transport] = result
            say(ranks, preset, transport, result)
            if ranks.rank == 0:
                write_report(report, arguments.out and arguments.out.with_suffix(f".{preset}.json"))
    return report


def say(ranks: Ranks, *words: Any) -> None:
    """Print once."""
    if ranks.rank == 0:
        print(*words, flush=True)


def times(pipe: Any, request: EditRequest, calls: int, ranks: Ranks) -> dict[str, Any]:
    """Seconds of whole edits and of steps on this GPU, and milliseconds by kind of kernel on all of them."""
    edit(pipe, request)
    seconds, steps = [], []
    for _ in range(calls):
        ends: list[Any] = []
        seconds.append(edit(pipe, request, on_step=partial(_record, ends)).seconds)
        torch.cuda.synchronize()
        steps += [before.elapsed_time(after) / 1000 for before, after in pairwise(ends)]
    return {
        "edit_s": seconds,
        "edit_median_s": statistics.median(seconds),
        "step_s": steps,
        "step_median_s": statistics.median(steps),
        **kernels(pipe, request, ranks),
    }


def _record(ends: list[Any], *_: int) -> None:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    ends.append(event)


def kernels(pipe: Any, request: EditRequest, ranks: Ranks) -> dict[str, Any]:
    """Milliseconds of a step by kind of kernel, and those of the longest kernels, of every rank."""
    from torch.profiler import ProfilerActivity, profile

    profiler = profile(activities=[ProfilerActivity.CUDA])

    def on_step(done: int, _total: int) -> None:
        if done in (2, 4):
            torch.cuda.synchronize()
            (profiler.start if done == 2 else profiler.stop)()

    edit(pipe, request, on_step=on_step)
    by_name: dict[str, float] = {}
    for event in profiler.key_averages():
        by_name[event.key[:120]] = by_name.get(event.key[:120], 0.0) + event.self_device_time_total / 2000
    by_kind = dict.fromkeys((*(kind for kind, _ in KINDS), "between"), 0.0)
    for name, milliseconds in by_name.items():
        kind = next((kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), "between")
        by_kind[kind] += milliseconds
    longest = dict(sorted(by_name.items(), key=lambda item: -item[1])[:24])
    everywhere = ranks.of_all((by_kind, longest))
    return {"kinds_ms": [kinds for kinds, _ in everywhere], "longest_ms": [names for _, names in everywhere]}


if __name__ == "__main__":
    sys.exit(main())
