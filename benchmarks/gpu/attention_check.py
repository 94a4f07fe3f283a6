"""Time every attention kernel that this GPU supports at the size of a full step, and measure its error against float32.

Usage: python -m benchmarks.gpu.attention_check [--steps 10] [--out FILE.json]

Each kernel runs alone on random inputs: with nearly even weights, with peaked weights, and with channels of 100 times
the size. Then it runs in the engine in fp8: seconds per step of a 1024x1024 edit of the checkpoint `random`, and the
distance of its latents from those with the default kernel. Exit code 0: done; 3: no GPU.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.check import NO_GPU, has_gpu, option_parser, timed, write_report
from benchmarks.gpu.latents import latents_of, relative_error
from kontext_fast.datasets.shapes import held_out
from kontext_fast.engine.dispatch import AUTO, attention_kernel, attention_kernels, refusal
from kontext_fast.engine.flops import FLUX_KONTEXT_DEV
from kontext_fast.engine.ops import quantize_joint
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.techniques.engine import Engine
from kontext_fast.pipeline.load import load

TOKENS, SIDE = 8704, 1024
_COMPARED = 512
"""Queries that are computed in float32, too."""
_SHORT = 2
"""Steps of the edit that is subtracted, so that the time of a call outside its steps does not count."""


def kernels() -> list[str]:
    """The kernels that are for GPUs only; the default of the engine is first."""
    default = attention_kernel(AUTO, "cuda").name
    others = [name for name, kernel in attention_kernels().items() if kernel.devices == ("cuda",) and name != default]
    return [default, *others]


def inputs(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of one sample, [1, TOKENS, heads, channels] in bfloat16."""
    generator = Generator("cuda").manual_seed(0)
    shape = 1, TOKENS, FLUX_KONTEXT_DEV.heads, FLUX_KONTEXT_DEV.head_dim
    query, key, value = torch.randn(3, *shape, generator=generator, device="cuda").bfloat16().unbind()
    if kind == "peaked":
        query *= 3
    if kind == "outliers":
        # One channel of each value, but not of query and key, which are normalized.
        value[..., 0] *= 100
    return query, key, value


def alone(kernel: str) -> dict[str, Any]:
    """Operations per second, and ||a - b|| / ||b|| for each kind of inputs."""
    errors = {kind: _error(kernel, *inputs(kind)) for kind in ("even", "peaked", "outliers")}
    query, key, value = inputs("even")
    operands = _operands(kernel, query, key, value)
    run = attention_kernel(kernel, "cuda").run
    seconds = _seconds(lambda: run(*operands))
    return {"flop_per_second": 4 * TOKENS**2 * FLUX_KONTEXT_DEV.width / seconds, "seconds": seconds, "errors": errors}


def _error(kernel: str, query: Tensor, key: Tensor, value: Tensor) -> float:
    rows = query[:, :_COMPARED]
    reference = scaled_dot_product_attention(*(tensor.transpose(1, 2).float() for tensor in (rows, key, value)))
    reference = reference.transpose(1, 2)
    # By channel, since one large channel would hide the error of the others.
    operands = _operands(kernel, query, key, value)
    output = attention_kernel(kernel, "cuda").run(*operands)[:, :_COMPARED].float()
    norm = partial(torch.linalg.vector_norm, dim=(0, 1, 2))
    return float((norm(output - reference) / norm(reference)).mean())


def _operands(kernel: str, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """What a kernel is given: in a step, `write_qkv` rounds for a quantized one at no cost of its own."""
    if not attention_kernel(kernel, "cuda").quantized:
        return query, key, value
    joint = quantize_joint(query, key, value)
    assert joint.scales is not None
    return joint.query, joint.key, joint.value, joint.scales


def _seconds(call: Callable[[], object], *, launches: int = 30) -> float:
    """Of one call: the median of three series of `launches` calls, after warm-up."""

    def series() -> None:
        for _ in range(launches):
            call()

    for _ in range(3):
        call()
    return statistics.median(timed(series)[0] for _ in range(3)) / launches


def in_steps(pipe: Any, kernel: str, steps: int) -> tuple[float, Tensor]:
    """Seconds of a step, and the latents of an edit of `steps`."""
    item = held_out(1)[0]

    def run(count: int) -> tuple[float, Tensor]:
        generator = [Generator().manual_seed(0)]
        return timed(
            lambda: latents_of(pipe, [item.render(SIDE)], [item.instruction], steps=count, generator=generator).float()
        )

    with accelerate(pipe, [Engine(precision="fp8", attention=kernel)], quiet=True):
        run(_SHORT)
        short_s, _ = run(_SHORT)
        long_s, latents = run(steps + _SHORT)
    return (long_s - short_s) / steps, latents


def main() -> int:
    """Run all kernels, print and store."""
    parser = option_parser(__doc__)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    if not has_gpu():
        return NO_GPU
    report: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "tokens": TOKENS, "steps": arguments.steps,
        "kernels": {}, "refused": {},
    }  # fmt: skip
    for kernel in kernels():
        if reason := refusal("cuda", torch.cuda.get_device_capability(), "fp8", kernel):
            report["refused"][kernel] = reason
        else:
            report["kernels"][kernel] = alone(kernel)
            print(kernel, json.dumps(report["kernels"][kernel]), flush=True)
    pipe = load("random", device="cuda").pipe
    pipe.set_progress_bar_config(disable=True)
    default: Tensor | None = None
    for kernel, row in report["kernels"].items():
        row["seconds_per_step"], latents = in_steps(pipe, kernel, arguments.steps)
        default = latents if default is None else default
        row["latents_apart"] = relative_error(latents, default)
        print(f"{kernel}: {1000 * row['seconds_per_step']:.1f} ms a step", flush=True)
        write_report(report, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
