"""What the evaluations of a solver take at full size; its quality is what `kontext tune` says.

    python -m benchmarks.gpu.solver_study --out results/CARD/DATE-solver
    python -m benchmarks.gpu.solver_study --attention flash3_fp8 --out results/CARD/DATE-solver
    python -m benchmarks.gpu.solver_study --mixtures 12:0 12:5 16:5 --out results/CARD/DATE-solver

It times edits of `random` at 1024x1024 in interleaved rounds, with the evaluations of a solver in `balanced` precision,
and estimates what a tuning takes there from the time of its evaluations; no quality is measured there. With mixtures
it times an evaluation in each precision, as `kontext tune --precision auto` does, and edits of so many evaluations in
fp8, the last of them in bf16 (of as many: all); `--checkpoint tiny` does the same for `tiny` at its own size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
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
from kontext_fast.tuning.parts import Part
from kontext_fast.tuning.precisions import Mixture
from kontext_fast.tuning.schemes import every_third
from kontext_fast.verify.paths import PathRunner

SIDE = 1024


def main() -> int:
    """Time everything and store the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the numbers")
    parser.add_argument("--device", help="default: the first GPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--attention", default="auto", help="the engine's kernel; --mixtures have that of auto")
    parser.add_argument("--mixtures", nargs="+", metavar="N:LAST", help="evaluations, and the last ones in bf16")
    parser.add_argument("--checkpoint", choices=("random", "tiny"), default="random", help="of --mixtures")
    arguments = parser.parse_args()
    if arguments.device is None and not has_gpu():
        return NO_GPU
    report = {"torch": torch.__version__, "device": torch.cuda.get_device_name()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.mixtures:
        for measured in mixtures(arguments):
            name = f"mixtures_{arguments.checkpoint}.json"
            (arguments.out / name).write_text(json.dumps({**report, **measured}, indent=1) + "\n")
        return 0
    (arguments.out / "speed_random.json").write_text(json.dumps({**report, **speed(arguments)}, indent=1) + "\n")
    return 0


def mixtures(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Seconds of an evaluation in each precision, of edits in mixtures of them, and of 28 steps with nothing applied.

    Gives everything so far after each.
    """
    side = SIDE if arguments.checkpoint == "random" else 128
    pipe = load(arguments.checkpoint, device=arguments.device).pipe
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
    runner = PathRunner(pipe, steps=28, guidance=2.5, size=(side, side), on_progress=lambda _: None)
    asked = [tuple(map(int, words.split(":"))) for words in arguments.mixtures]
    levels = {number: runner.levels([_Picture(picture)], number) for number, _ in asked}
    runner.close()

    def timed(steps: int, optimization: Any = None, rounds: int = 2) -> list[float]:
        return [_timed_edit(pipe, picture, steps, optimization, side) for _ in range(rounds)]

    seconds: dict[str, Any] = {}
    report = {"checkpoint": arguments.checkpoint, "size": [side, side], "seconds": seconds}
    for precision in ("bf16", "fp8"):
        with accelerate(pipe, Mixture(1, precision).optimizations, quiet=True):
            timed(2, rounds=1)
            seconds[f"{precision}, 2 steps"], seconds[f"{precision}, 10 steps"] = timed(2), timed(10)
        yield report
    for number, last in asked:
        mixture = Mixture(number, "bf16") if last == number else Mixture(number, "fp8", last)
        torch.cuda.reset_peak_memory_stats()
        with accelerate(pipe, mixture.optimizations, quiet=True):
            rule = FittedSolver(fitted=adams_bashforth(levels[number], 2))
            timed(28, rule, rounds=1)
            name = f"{number} evaluations ({mixture.words})"
            seconds[name] = timed(28, rule)
            report.setdefault("peak_gib", {})[name] = torch.cuda.max_memory_allocated() / 2**30
        yield report
    timed(2, rounds=1)
    seconds["as diffusers runs it, 28 steps"] = timed(28, rounds=1)
    yield report


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of edits of random weights, every configuration once in each round, in an order that changes."""
    start = perf_counter()
    pipe = load("random", device=arguments.device).pipe
    print(f"loaded in {perf_counter() - start:.0f} s", flush=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    part = Part([_Picture(picture)], [1])
    torch.cuda.reset_peak_memory_stats()
    report: dict[str, Any] = {"checkpoint": "random", "size": [SIDE, SIDE], "steps": 28, "precision": "fp8"}
    with accelerate(pipe, "balanced", quiet=True, attention=arguments.attention) as acceleration:
        report["attention"] = acceleration.facts["engine"]["attention_kernel"]
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
    return report


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


def _timed_edit(pipe: Any, picture: Image.Image, steps: int, optimization: Any, side: int = SIDE) -> float:
    with ExitStack() as undo:
        if optimization is not None:
            optimization.apply(pipe, undo)
        torch.cuda.synchronize()
        start = perf_counter()
        edit(pipe, EditRequest("make the background blue", picture, steps=steps, seed=1, size=(side, side)))
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
