"""Compare steps with and without CUDA graphs, bit for bit, and time them, also on a slower host.

Usage: python -m benchmarks.gpu.step_graphs_check [--checkpoint random] [--sizes 512,768,1024] [--rounds 2] [--out FILE]

Graphs are on at every size here, whatever the table of the engine says. Each preset edits every size, with one image
and with two, in turn, twice; latents are compared with those of the same engine without graphs. A time per step is the
difference of two calls of different numbers of steps, divided by that number, so that the loop of the pipeline is in
it and what surrounds it is not. The slower host spins for 10 us before each operation of the engine, each of which
launches one kernel; a replay of a graph is one launch.
Exit code 0: done; 1: a bit differs, or no graph was replayed; 3: no GPU.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks.gpu.check import NO_GPU, has_gpu, now, option_parser, write_report
from benchmarks.gpu.latents import latents_of
from kontext_fast.datasets.shapes import held_out
from kontext_fast.engine.graphs import recording
from kontext_fast.engine.graphs.recorded_calls import StepGraphs
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.presets import find_preset
from kontext_fast.optimizations.techniques.engine import require_engine
from kontext_fast.pipeline.edit import EditRequest, edit
from kontext_fast.pipeline.load import load

PRESETS = ("balanced", "balanced(attention=cudnn)", "faithful", "precise", "balanced(attention=flash3_fp8)")
TIMED = {"balanced": 3, "faithful": 2}
"""How many of the sizes are timed."""

SPIN_US = 10.0

MORE_STEPS = 20
"""Of the longer of two calls, at the smallest size; fewer at larger ones."""

_OPERATIONS = (
    "norm_modulate",
    "add_norm_modulate",
    "write_qkv",
    "write_all_qkv",
    "attention",
    "linear",
    "gelu",
    "join_gelu",
    "add_gated",
)
"""Of `engine.ops.Ops`, which launch one kernel each."""


def main() -> int:
    """Load, compare, time, print and store."""
    parser = option_parser(__doc__)
    parser.add_argument("--checkpoint", default="random")
    parser.add_argument("--sizes", default="512,768,1024")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    if not has_gpu():
        return NO_GPU
    pipe = load(arguments.checkpoint).pipe
    pipe.set_progress_bar_config(disable=True)
    sizes = [int(size) for size in arguments.sizes.split(",")]
    report: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name in PRESETS:
        report[name] = measured(pipe, name, sizes, arguments.rounds)
        print(name, json.dumps(report[name], indent=1), flush=True)
        write_report(report, arguments.out)
    checked = [report[name] for name in PRESETS]
    return 0 if all(all(of["equal"].values()) and of["facts"]["replays"] for of in checked) else 1


def measured(pipe: Any, preset: str, sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    """Whether each comparison found equal bits, memory and seconds of recording by layout, and times per step."""
    with accelerate(pipe, find_preset(preset), quiet=True) as acceleration:
        engine = require_engine(pipe.transformer, "engine").engine
        recorder = recording.recorder_for(pipe._execution_device)
        assert recorder is not None
        graphs = StepGraphs(recorder, most_tokens=10**6)
        timed = sizes[: TIMED.get(preset, 0)]
        equal, recorded = _compared(pipe, engine, graphs, sizes if timed else sorted({sizes[0], sizes[-1]}))
        equal |= _other_calls(pipe, engine, graphs, sizes[0])
        times = {
            str(size): _times(pipe, engine, graphs, size, rounds, more_steps=MORE_STEPS * sizes[0] // size)
            for size in timed
        }
        kernel = acceleration.facts["engine"]["attention_kernel"]
    graphs.clear()
    return {
        "attention_kernel": kernel,
        "equal": equal,
        "recorded": recorded,
        "ms_per_step": times,
        "facts": {**graphs.facts, "in the table": acceleration.facts["engine"]["step_graphs"]},
    }


def _compared(
    pipe: Any, engine: Any, graphs: StepGraphs, sizes: Sequence[int]
) -> tuple[dict[str, bool], dict[str, dict[str, float]]]:
    """Every layout in turn, twice."""
    equal, recorded = {}, {}
    for turn in range(2):
        for size in sizes:
            for batch in (1, 2):
                name = f"{size}x{size}, {batch} at once"
                expected = _latents(pipe, engine, None, size, batch, seed=turn)
                seconds = graphs.facts["record_s"]
                equal[f"{name}, turn {turn + 1}"] = torch.equal(
                    _latents(pipe, engine, graphs, size, batch, seed=turn), expected
                )
                if not turn:
                    recorded[name] = {
                        "record_s": graphs.facts["record_s"] - seconds,
                        "pool_bytes_with_earlier_ones": graphs.facts["pool_bytes"],
                    }
    return equal, recorded


def _other_calls(pipe: Any, engine: Any, graphs: StepGraphs, size: int) -> dict[str, bool]:
    """True CFG, and copies of the pipeline in threads."""
    (item,) = held_out(1)
    guided = EditRequest(
        item.instruction, item.render(size), steps=3, seed=0, size=(size, size), negative="blurry", true_cfg=2.0
    )

    def image(own: Any, request: EditRequest) -> bytes:
        return edit(own, request).images[0].tobytes()

    engine.graphs = None
    expected = image(pipe, guided)
    engine.graphs = graphs
    equal = {"true CFG": image(pipe, guided) == expected}
    copies = [copy.copy(pipe) for _ in range(3)]
    for own in copies:
        own.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    requests = [
        EditRequest(item.instruction, item.render(size), steps=3, seed=seed, size=(size, size)) for seed in range(3)
    ]
    engine.graphs = None
    expected_of_threads = [image(pipe, request) for request in requests]
    engine.graphs = graphs
    with ThreadPoolExecutor(len(copies)) as threads:
        equal["copies in threads"] = list(threads.map(image, copies, requests)) == expected_of_threads
    return equal


def _times(
    pipe: Any, engine: Any, graphs: StepGraphs, size: int, rounds: int, *, more_steps: int
) -> dict[str, dict[str, float]]:
    """Median milliseconds per step, without and with graphs, in interleaved rounds."""
    choices = {"without": None, "with": graphs}
    hosts: dict[str, Callable[[], Any]] = {
        "as it is": _host_as_it_is,
        f"{SPIN_US:g} us slower": lambda: _slower(engine),
    }
    values: dict[tuple[str, str], list[float]] = {}
    for repetition in range(rounds + 1):
        for host, on_host in hosts.items():
            for label, chosen in choices.items():
                with on_host():
                    value = _step_ms(pipe, engine, chosen, size, more_steps)
                if repetition:  # the first one warms up
                    values.setdefault((host, label), []).append(value)
    times: dict[str, dict[str, float]] = {}
    for (host, label), of_rounds in values.items():
        times.setdefault(host, {})[label] = statistics.median(of_rounds)
    return times


def _step_ms(pipe: Any, engine: Any, graphs: StepGraphs | None, size: int, more_steps: int) -> float:
    seconds = []
    for steps in (2, 2 + more_steps):
        began = now()
        _latents(pipe, engine, graphs, size, 1, seed=0, steps=steps)
        seconds.append(now() - began)
    return 1e3 * (seconds[1] - seconds[0]) / more_steps


def _latents(
    pipe: Any, engine: Any, graphs: StepGraphs | None, size: int, batch: int, *, seed: int, steps: int = 3
) -> Tensor:
    engine.graphs = graphs
    items = held_out(batch)
    generators = [Generator().manual_seed(10 * seed + index) for index in range(batch)]
    images, instructions = [item.render(size) for item in items], [item.instruction for item in items]
    return latents_of(pipe, images, instructions, steps=steps, generator=generators)


@contextmanager
def _host_as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _slower(engine: Any) -> Iterator[None]:
    """Spin before every operation of the engine's steps."""
    ops = engine.ops

    def spinning(method: Any) -> Any:
        def spun(*args: Any, **kwargs: Any) -> Any:
            until = time.perf_counter() + SPIN_US / 1e6
            while time.perf_counter() < until:
                pass
            return method(*args, **kwargs)

        return spun

    def prepare(x: Tensor, *, quantize: bool) -> Any:
        return (spinning(type(ops).prepare) if quantize else type(ops).prepare)(ops, x, quantize=quantize)

    for name in _OPERATIONS:
        vars(ops)[name] = spinning(getattr(ops, name))
    vars(ops)["prepare"] = prepare
    try:
        yield
    finally:
        for name in (*_OPERATIONS, "prepare"):
            del vars(ops)[name]


if __name__ == "__main__":
    sys.exit(main())
