"""Time one edit on all GPUs of this program against one of them, and compare the latents.

Usage: torchrun --nproc-per-node 2 -m benchmarks.gpu.several_gpus_check [--checkpoint random] [--size 1024] [--steps 6]
       [--presets balanced,faithful] [--modes collectives,peer_memory+graphs] [--true-cfg]
       [--peers diffusers] [--out FILE.json]

All is measured in the same processes on the same weights: alone, every process runs the whole edit by itself at the
same time. A step is the median between the ends of neighbouring steps on the GPU. The kernels of two steps are summed
by kind on every GPU; what a collective lasts on the GPU that came last is its transfer, and the rest of a step waiting.
With `graphs` a CUDA graph launches each step; its latents are compared with those of the same exchange without, too.
A preset may have more optimizations, as in balanced+text_graphs+device_pixels. `--true-cfg` times edits of two passes
a step, which two GPUs run one each. `--peers diffusers` measures diffusers' own pipeline on one GPU and with its
ContextParallelConfig, `--peers cache-dit` that of cache-dit with its ParallelismConfig, if it is installed, with
nothing cached; `--presets=` measures nothing else. The file is written after every mode, and a mode that takes longer
than --patience seconds ends the program.
Exit code 0: done; 1: latents differ by more than rounding, or graphs change bits; 3: no GPU; 4: a mode did not end.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from threading import Timer
from typing import Any, cast

import torch

from benchmarks.gpu.check import NO_GPU, has_gpu, option_parser, write_report
from benchmarks.gpu.latents import relative_error
from kontext_fast.datasets.shapes import held_out
from kontext_fast.engine.dispatch import make_ops
from kontext_fast.engine.graphs.recorded_calls import StepGraphs
from kontext_fast.engine.graphs.recording import recorder_for
from kontext_fast.engine.ranks import Ranks, join
from kontext_fast.engine.sequence_parallel import SequenceParallel, Transport
from kontext_fast.engine.transformer import EngineTransformer
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.presets import Preset, declare_preset, find_preset
from kontext_fast.optimizations.techniques.engine import engine_of
from kontext_fast.pipeline.edit import EditRequest, edit, final_latents
from kontext_fast.pipeline.load import load

GRAPHS = "+graphs"

MODES = ("collectives", "peer_memory", f"peer_memory{GRAPHS}", f"collectives{GRAPHS}")
"""How GPUs exchange heads, and whether graphs launch their steps."""

ROUNDING = {"faithful": 0.02, "balanced": 0.1}
"""Relative error of latents that is no mistake: in bf16 and fp8."""

BACKENDS = ("native", "_native_cudnn")
"""Kernels of attention in diffusers that its ContextParallelConfig supports and that need nothing else."""

KINDS = (
    ("beside", r"memcpy ptop"),
    ("exchange", r"nccl|barrier|multimem"),
    ("attention", r"flash|fmha|sdpa|attention"),
    ("products", r"gemm|cutlass|nvjet|cublas|xmma|splitK"),
)
"""Of kernels, by what is in their names; all others are between the products. What copy engines move `beside` kernels
is no time of its own."""


def main() -> int:
    """Load, compare, time, print and store."""
    parser = option_parser(__doc__)
    parser.add_argument("--checkpoint", default="random")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--presets", default="balanced,faithful")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--true-cfg", action="store_true")
    parser.add_argument("--peers", choices=("diffusers", "cache-dit"), help="one a program, since none can be undone")
    parser.add_argument("--patience", type=float, default=60, help="seconds that a mode may take")
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
    measuring = Measuring(pipe, request, ranks, arguments, report)
    for preset in filter(None, arguments.presets.split(",")):
        measuring.measure(preset)
    if arguments.peers == "diffusers":
        measuring.measure_diffusers()
    elif arguments.peers:
        measuring.measure_cache_dit()
    return int(
        any(
            result["relative_error"] > ROUNDING.get(preset, 0.1) or result.get("graphs_changed_bits", False)
            for preset, of_preset in report["presets"].items()
            for result in of_preset["together"].values()
        )
    )


def preset_named(name: str) -> Preset:
    """The preset before the first +, with the optimizations after it."""
    first, *more = name.split("+")
    preset = find_preset(first)
    added = [part for technique in more for part in find_preset(technique).optimizations]
    return declare_preset(name, preset.summary, (*preset.optimizations, *added), optional=preset.optional)


class Measuring:
    """One program's measurements, stored after each of them."""

    def __init__(self, pipe: Any, request: EditRequest, ranks: Ranks, arguments: Any, report: dict[str, Any]) -> None:
        self._pipe, self._request, self._ranks, self._report = pipe, request, ranks, report
        self._calls, self._modes, self._out = arguments.calls, arguments.modes.split(","), arguments.out
        self._patience: float = arguments.patience
        self._true_cfg: bool = arguments.true_cfg

    def measure(self, preset: str) -> None:
        """Alone, and together in each mode."""
        pipe, ranks = self._pipe, self._ranks
        of_preset: dict[str, Any] = {"together": {}}
        self._report["presets"][preset] = of_preset
        with accelerate(pipe, preset_named(preset), quiet=True, gpus=ranks.size) as acceleration:
            forward = engine_of(pipe.transformer)
            assert forward is not None
            weights = forward.engine.weights
            ops = make_ops(weights.device.type, weights.precision, forward.engine.ops.attention_kernel.name)
            of_preset["attention"] = acceleration.facts["engine"]["attention_kernel"]
            forward.engine = EngineTransformer(weights, ops)
            _share_with(forward, None)
            with self._part(of_preset, f"{preset} alone"):
                alone = final_latents(pipe, [self._request])
                of_preset["alone"] = self._times()
            self._say(preset, "alone", of_preset["alone"])
            if self._true_cfg:
                with self._part(of_preset, f"{preset} true CFG"):
                    self._measure_true_cfg(of_preset, forward)
            latents: dict[str, Any] = {}
            _share_with(forward, ranks)
            for mode in self._modes:
                transport, _, graphs = mode.partition("+")
                recorder = recorder_for(weights.device) if graphs else None
                recorded = None if recorder is None else StepGraphs(recorder, None, ranks.everywhere)
                parallel = SequenceParallel(ranks, cast("Transport", transport))
                forward.engine = EngineTransformer(weights, ops, parallel=parallel, graphs=recorded)
                with self._part(of_preset, mode):
                    latents[mode] = together = final_latents(pipe, [self._request])
                    result = {
                        "relative_error": relative_error(together, alone),
                        "bit_equal": bool(torch.equal(together, alone)),
                        **self._times(),
                    }
                    if recorded is not None:
                        replayed = final_latents(pipe, [self._request])
                        result["step_graphs"] = dict(recorded.facts)
                        result["graphs_changed_bits"] = not all(
                            torch.equal(replayed, latents.get(other, together)) for other in (mode, transport)
                        )
                        recorded.clear()
                    of_preset["together"][mode] = result
                    self._say(preset, mode, result)

    def _measure_true_cfg(self, of_preset: dict[str, Any], forward: Any) -> None:
        """Two passes a step, alone and by as many processes."""
        request = replace(self._request, negative="blurry", true_cfg=2.0)
        latents, of_preset["true_cfg"] = [], {}
        for name, ranks in (("alone", None), ("together", self._ranks)):
            _share_with(forward, ranks)
            latents.append(final_latents(self._pipe, [request]))
            edit(self._pipe, request)  # from the second edit of a size on, encoders are shared, too
            seconds = [edit(self._pipe, request).seconds for _ in range(self._calls)]
            of_preset["true_cfg"][name] = {"edit_s": seconds, "edit_median_s": statistics.median(seconds)}
        of_preset["true_cfg"]["bit_equal"] = bool(torch.equal(*latents))
        self._say("true CFG", of_preset["true_cfg"])

    def measure_cache_dit(self) -> None:
        """Its sequence parallelism on all GPUs."""
        peers: dict[str, Any] = self._report.setdefault("peers", {})
        with self._part(peers, "cache-dit"):
            import cache_dit

            before = final_latents(self._pipe, [self._request])
            config = cache_dit.ParallelismConfig(ulysses_size=self._ranks.size, attention_backend="native")
            cache_dit.enable_cache(self._pipe, parallelism_config=config)
            error = relative_error(final_latents(self._pipe, [self._request]), before)
            peers["cache-dit"] = {str(self._ranks.size): {**self._times(), "relative_error": error}}
            self._say(peers)

    def measure_diffusers(self) -> None:
        """diffusers' own pipeline, one GPU and then both, which cannot be undone."""
        from diffusers import ContextParallelConfig

        peers: dict[str, Any] = self._report.setdefault("peers", {})
        transformer = self._pipe.transformer
        latents: dict[str, Any] = {}
        for gpus in (1, self._ranks.size):
            for backend in BACKENDS:
                with self._part(peers, f"{gpus} {backend}"):
                    transformer.set_attention_backend(backend)
                    if gpus > 1 and transformer._parallel_config is None:
                        transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=gpus))
                    latents[backend], before = final_latents(self._pipe, [self._request]), latents.get(backend)
                    result = self._times()
                    if before is not None:
                        result["relative_error"] = relative_error(latents[backend], before)
                    peers.setdefault(backend, {})[str(gpus)] = result
                    self._say("diffusers", backend, gpus, result)

    @contextmanager
    def _part(self, report: dict[str, Any], name: str) -> Iterator[None]:
        """Around one measurement: an error is why it was not measured, and what does not end is ended."""

        def give_up() -> None:
            report.setdefault("not_measured", {})[name] = f"did not end within {self._patience:.0f} s"
            self._store()
            os._exit(4)

        # The first process writes before others end, since their end is its own.
        timer = Timer(self._patience + (5 if self._ranks.rank else 0), give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        except Exception as error:  # noqa: BLE001 - such as memory that cannot be shared on this host
            self._say(name, error)
            report.setdefault("not_measured", {})[name] = str(error)
        finally:
            timer.cancel()
            self._store()

    def _store(self) -> None:
        if self._ranks.rank == 0:
            write_report(self._report, self._out)

    def _say(self, *words: Any) -> None:
        """Print once."""
        if self._ranks.rank == 0:
            print(*words, flush=True)

    def _times(self) -> dict[str, Any]:
        return times(self._pipe, self._request, self._calls, self._ranks)


def _share_with(forward: Any, ranks: Ranks | None) -> None:
    """Have these processes run every call together, or each by itself."""
    forward.ranks = forward.encoding.ranks = ranks


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
