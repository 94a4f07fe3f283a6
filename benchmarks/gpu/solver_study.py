"""Solvers fitted to `tiny` and proved on held-out edits, and what their evaluations take at full size.

    python -m benchmarks.gpu.solver_study quality --dtype float32 --out results/CARD/DATE-solver
    python -m benchmarks.gpu.solver_study quality --dtype bfloat16 --precision fp8 --out results/CARD/DATE-solver
    python -m benchmarks.gpu.solver_study as-accurate --out results/CARD/DATE-solver
    python -m benchmarks.gpu.solver_study speed --out results/CARD/DATE-solver

`quality` fits 6, 7, 9, 10 and 12 evaluations to `tiny` for both targets; it writes one JSON file per precision and the
preset files that passed. `as-accurate` lets the rule choose the number, then confirms it on 400 other items.
`speed` times edits of `random` at 1024x1024 in interleaved rounds, with the evaluations of a solver in `balanced`
precision, and estimates what a tuning takes there from the time of its evaluations; no quality is measured there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu.check import NO_GPU, has_gpu
from kontext_fast.engine.solver import Solver, adams_bashforth
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.techniques.solver import FittedSolver
from kontext_fast.optimizations.techniques.step_reuse import StepReuse
from kontext_fast.pipeline.edit import EditRequest, edit
from kontext_fast.pipeline.load import load
from kontext_fast.tuning.parts import Part, shapes_parts
from kontext_fast.tuning.request import TuneResult
from kontext_fast.tuning.schemes import every_third
from kontext_fast.tuning.tune import tune
from kontext_fast.verify.paths import PathRunner

EVALUATIONS = (6, 7, 9, 10, 12)
SIDE = 1024


def main() -> int:
    """Run one part and store its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("quality", "as-accurate", "speed"))
    parser.add_argument("--out", type=Path, required=True, help="folder for the numbers and the preset files")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--precision", choices=("bf16", "fp8"), default="bf16")
    parser.add_argument("--device", help="default: the first GPU")
    parser.add_argument("--items", type=int, default=160, help="to fit (four fifths) and to choose by")
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--evaluations", default=",".join(map(str, EVALUATIONS)))
    parser.add_argument("--images-per-call", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.device is None and not has_gpu():
        return NO_GPU
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    arguments.out.mkdir(parents=True, exist_ok=True)
    part = {"quality": quality, "as-accurate": as_accurate, "speed": speed}[arguments.part]
    name, report = part(arguments)
    report = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **report,
    }
    (arguments.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0


def quality(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Both targets of `tiny` in one precision."""
    loaded = load("tiny", device=arguments.device, dtype=arguments.dtype)
    name = arguments.dtype if arguments.dtype == "float32" else arguments.precision
    report: dict[str, Any] = {"checkpoint": "tiny", "weights_sha256": loaded.facts.weights_sha256, "dtype": name}
    for target in ("converged", "steps"):
        numbers = tuple(map(int, arguments.evaluations.split(",")))
        result, seconds = _tuned(
            loaded.pipe, arguments, seed=0, keep=f"{name}-{target}", evaluations=numbers, target=target
        )
        report[target] = {"seconds": seconds, **result.as_data()}
        _print(f"{name}, {target}", result)
    return f"tiny_{name}", report


def as_accurate(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The number that the rule picks on `tiny`, then the same number fitted and judged with other items."""
    loaded = load("tiny", device=arguments.device, dtype=arguments.dtype)
    picked, seconds = _tuned(loaded.pipe, arguments, seed=0, keep="as-accurate", as_accurate=True)
    _print("as-accurate", picked)
    report: dict[str, Any] = {"seconds": seconds, "picked": picked.as_data()}
    if picked.points:
        numbers = (picked.points[0].evaluations,)
        confirmed, _ = _tuned(loaded.pipe, arguments, seed=1, keep=None, evaluations=numbers)
        _print("confirmed with other items", confirmed)
        report["confirmed"] = confirmed.as_data()
    return "as_accurate", report


def _tuned(
    pipe: Any, arguments: argparse.Namespace, *, seed: int, keep: str | None, **options: Any
) -> tuple[TuneResult, float]:
    parts = shapes_parts(items=arguments.items, held_out=arguments.held_out, seed=seed)
    start = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = tune(
            pipe,
            parts,
            folder,
            checkpoint="tiny",
            say=print,
            precision=arguments.precision,
            images_per_call=arguments.images_per_call,
            **options,
        )
        seconds = perf_counter() - start
        for file in result.files if keep else ():
            (arguments.out / f"{keep}-{file.name}").write_bytes(file.read_bytes())
    return result, seconds


def _print(title: str, result: TuneResult) -> None:
    for name, values in result.baseline.items():
        print(f"{title}: {name}: mean {values.mean():.4f}, median {np.median(values):.4f}")
    for point in result.points:
        shown = ", ".join(
            f"{name} {values.mean():.4f}/{np.median(values):.4f}" for name, values in point.distances.items()
        )
        accurate = "" if point.closeness is None else f", against baseline: {point.closeness}"
        print(f"{title}: {point.evaluations} evaluations {point.verdict}{accurate}: {shown}", flush=True)


def speed(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Seconds of edits of random weights, every configuration once in each round, in an order that changes."""
    start = perf_counter()
    pipe = load("random", device=arguments.device).pipe
    print(f"loaded in {perf_counter() - start:.0f} s", flush=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    part = Part([_Picture(picture)], [1])
    torch.cuda.reset_peak_memory_stats()
    report: dict[str, Any] = {"checkpoint": "random", "size": [SIDE, SIDE], "steps": 28, "precision": "fp8"}
    with accelerate(pipe, "balanced", quiet=True):
        levels = _levels(pipe, part)
        configurations = _configurations(levels)
        times: dict[str, list[float]] = {name: [] for name in configurations}
        order = np.random.default_rng(1)
        for round_ in range(arguments.rounds + 1):
            for name in order.permutation(list(configurations)):
                seconds = _timed_edit(pipe, picture, *configurations[str(name)])
                if round_:  # the first one warms up
                    times[str(name)].append(seconds)
        report["seconds"] = times
        report["peak_gib"] = torch.cuda.max_memory_reserved() / 2**30
        report["tuning"] = _time_of_a_tuning(pipe, part, levels(112))
    for name, values in times.items():
        print(f"{name}: {statistics.median(values):.3f} s (median of {len(values)})", flush=True)
    print(json.dumps(report["tuning"], indent=1))
    return "speed_random", report


def _configurations(levels: Callable[[int], list[float]]) -> Mapping[str, tuple[int, Any]]:
    """Steps to ask for, and what is applied besides `balanced`."""

    def rule(solver: Solver) -> FittedSolver:
        return FittedSolver(fitted=solver)

    return {
        **{
            f"solver of {number} evaluations": (28, rule(adams_bashforth(levels(number), number)))
            for number in (6, 7, 10)
        },
        "turbo": (28, StepReuse(computed=4)),
        "fast": (28, StepReuse(computed=3)),
        "plain 8 steps": (8, None),
        "balanced, 28 steps": (28, None),
        "every third step (Replicate), 13 evaluations": (28, rule(every_third(levels(28)))),
    }


def _timed_edit(pipe: Any, picture: Image.Image, steps: int, optimization: Any) -> float:
    with ExitStack() as undo:
        if optimization is not None:
            optimization.apply(pipe, undo)
        torch.cuda.synchronize()
        start = perf_counter()
        edit(pipe, EditRequest("make the background blue", picture, steps=steps, seed=1, size=(SIDE, SIDE)))
        torch.cuda.synchronize()
        return perf_counter() - start


def _levels(pipe: Any, part: Part) -> Callable[[int], list[float]]:
    runner = _runner(pipe)
    try:
        known = {steps: runner.levels(part.items, steps) for steps in (6, 7, 10, 28, 112)}
    finally:
        runner.close()
    return known.__getitem__


def _time_of_a_tuning(pipe: Any, part: Part, levels: list[float]) -> dict[str, float]:
    """Seconds per evaluation of a tuning, and from them the hours of one: computed, not measured."""
    runner = _runner(pipe)
    try:
        runner.dense(part.items, part.seeds, levels[:3])
        start, steps = perf_counter(), 16
        path = runner.dense(part.items, part.seeds, levels[: steps + 1])
        torch.cuda.synchronize()
        dense = (perf_counter() - start) / steps
        start, calls = perf_counter(), 4
        for _ in range(calls):
            runner.velocity(part.items, part.seeds, path.states[0], levels[4], (0, 10))
        torch.cuda.synchronize()
        alone = (perf_counter() - start) / calls
    finally:
        runner.close()
    fit, held_out, number = 32, 32, 10
    evaluations_in_paths = fit * 112 + held_out * (224 + 112 + 56 + 28 + 28) + 6 * number * held_out
    evaluations_alone = 2 * number * fit
    return {
        "seconds_per_evaluation_in_a_path": dense,
        "seconds_per_evaluation_alone": alone,
        "scaled_hours_of_32_items_and_32_held_out_for_10": (
            evaluations_in_paths * dense + evaluations_alone * alone
        ) / 3600,
    }  # fmt: skip


def _runner(pipe: Any) -> PathRunner:
    return PathRunner(pipe, steps=28, guidance=2.5, size=(SIDE, SIDE), on_progress=lambda _: None)


class _Picture:
    """An item of noise."""

    id, instruction, kind, open, target, mask = "noise", "make the background blue", None, None, None, None
    input_caption = output_caption = None

    def __init__(self, image: Image.Image) -> None:
        self.image = image


if __name__ == "__main__":
    sys.exit(main())
