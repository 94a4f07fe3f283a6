"""Measure all published numbers of a card on this machine's GPU within a time limit; run it again to continue.

Usage: python -m benchmarks.gpu.measure_card --out results/NAME [--minutes 30] [--only centre,cold,...]

Short steps come first, and the benchmark with most rounds last. A step whose file exists is not run again; a benchmark
resumes where it was stopped. Then `make docs` renders what is below `results/`.
Exit code 0: everything is measured; 1: a step failed or is left; 2: an unknown step; 3: no GPU.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.check import NO_GPU, has_gpu

_GRACE_S = 20.0
"""Time for a benchmark that is interrupted to end its worker and store its finished runs."""


@dataclass(frozen=True)
class Step:
    """One command that writes to a folder."""

    name: str
    command: Callable[[Path], Sequence[str]]
    """The command line for that folder."""
    file: str | None = None
    """The file in the folder that exists when the step is done. None: a benchmark, which itself resumes what is
    left."""
    least_s: float = 60.0
    """The step is not started with less time than this."""


def check(file: str, name: str, *options: str, least_s: float = 60.0) -> Step:
    """A module of this package with the option `--out FILE`."""
    stem = file.removesuffix(".json")
    run = [sys.executable, "-m", f"benchmarks.gpu.{name}", *options]
    return Step(stem, lambda out: [*run, "--out", str(out / file)], file, least_s)


def bench(name: str, *options: str, file: str | None = None, least_s: float = 60.0) -> Step:
    """`kontext bench` of random weights in a folder of its own."""
    run = [sys.executable, "-m", "kontext_fast", "bench", "--checkpoint", "random", *options]
    more = () if file else ("--resume",)
    return Step(name, lambda out: [*run, "--out", str(out / name), *more], file and f"{name}/{file}", least_s)


STEPS = (
    check("vae.json", "vae_check", least_s=30),
    check("precision_tiny.json", "precision_check", least_s=40),
    check("low_memory.json", "low_memory_check", least_s=120),
    check("kernel_timing.json", "kernel_check", least_s=90),
    check("precision_random.json", "precision_check", "--checkpoint", "random", "--items", "1", "--steps", "8",
           "--side", "1024", least_s=100),
    check("attention.json", "attention_check", least_s=90),
    bench("roofline", "--suite", "card", "--roofline", "--presets", "faithful,balanced,turbo", file="roofline.json"),
    bench("cold", "--suite", "card-cold"),
    bench("sizes", "--suite", "card-sizes"),
    bench("sweeps", "--suite", "card-sweeps"),
    bench("ablation", "--suite", "ablation", "--rounds", "2", "--calls", "1", "--warmup", "0", "--steps", "10"),
    bench("peers", "--suite", "card", "--peers", "--rounds", "2"),
    bench("centre", "--suite", "card", "--rounds", "5"),
)  # fmt: skip


def measure(steps: Sequence[Step], out: Path, seconds: float) -> dict[str, str]:
    """The outcome of each of `steps`: `done`, `exists` (from before), `left` or `failed (exit code)`."""
    ends_at = time.monotonic() + seconds
    outcomes: dict[str, str] = {}
    for step in steps:
        left_s = ends_at - time.monotonic()
        if step.file and (out / step.file).is_file():
            outcomes[step.name] = "exists"
        elif left_s < step.least_s:
            outcomes[step.name] = "left"
        else:
            began = time.monotonic()
            outcomes[step.name] = run(step.command(out), left_s - (0 if step.file else _GRACE_S))
            print(f"{step.name}: {outcomes[step.name]} after {time.monotonic() - began:.0f} s", flush=True)
    return outcomes


def run(command: Sequence[str], seconds: float) -> str:
    """Run `command` for at most `seconds`; then interrupt it, as by Ctrl-C, and later kill it."""
    with subprocess.Popen(command) as process:
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            return "left"
    # A benchmark ends with 1 if runs failed, which are rows of its result.
    return "done" if code == 0 or (code == 1 and "bench" in command) else f"failed ({code})"


def main() -> int:
    """Run the requested steps and print their outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results of this card")
    parser.add_argument("--minutes", type=float, default=30.0, help="for all of it")
    parser.add_argument("--only", help=f"comma-separated: {','.join(step.name for step in STEPS)}")
    arguments = parser.parse_args()
    known = {step.name: step for step in STEPS}
    names = arguments.only.split(",") if arguments.only else list(known)
    if unknown := [name for name in names if name not in known]:
        print(f"There is no step {', '.join(unknown)}; choose from {', '.join(known)}.", file=sys.stderr)
        return 2
    if not has_gpu():
        return NO_GPU
    arguments.out.mkdir(parents=True, exist_ok=True)
    outcomes = measure([known[name] for name in names], arguments.out, 60 * arguments.minutes)
    print("\n".join(f"{name}: {outcome}" for name, outcome in outcomes.items()))
    return 0 if set(outcomes.values()) <= {"done", "exists"} else 1


if __name__ == "__main__":
    sys.exit(main())
