"""Compare steps whose MLP's product applies the GELU, and writes where the next layer reads, with passes of their own.

Usage: python -m benchmarks.gpu.mlp_product_check [--checkpoint random] [--rounds 4] [--out FILE]

`apart`: GELU, rounding and joining with attention's output are passes of their own. `copied`: attention's output is
copied to where it is read. `engine`: as the engine runs it. Steps are those of an edit of one image, on its inputs at
its first step; the arms take turns, so that heat is the same for all, and a time is that of a step within such a turn.
Exit code 0: done; 1: a velocity is farther from that of `apart` than rounding; 3: no GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.check import NO_GPU, has_gpu, option_parser, write_report
from benchmarks.gpu.latents import relative_error
from benchmarks.gpu.steps_in_turn import first_step, in_turns
from kontext_fast.bench.nvml import NvmlDevice
from kontext_fast.engine.kernels.fused import FusedOps
from kontext_fast.engine.ops import Activations, Attend, Linear, Quantized, quantize
from kontext_fast.engine.weights import EngineWeights
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.presets import find_preset
from kontext_fast.optimizations.techniques.engine import require_engine
from kontext_fast.pipeline.load import load

ROUNDING = {"faithful": 0.015, "balanced": 0.1}
"""Of a velocity, relative, by preset."""
SIZE = 1024


class _Apart(FusedOps):
    def linear_gelu(
        self, x: Activations, layer: Linear, *, quantize: bool, static: Tensor | None = None
    ) -> Activations:
        if quantize or isinstance(x, Quantized) or isinstance(layer.weight, Quantized):
            return self.gelu(self.linear(x, layer), quantize=quantize)
        assert layer.bias is not None
        hidden = torch._addmm_activation(layer.bias, x.flatten(0, -2), layer.weight.t(), use_gelu=True)
        return hidden.view(*x.shape[:-1], -1)

    def join_linear_gelu(
        self, attend: Attend, x: Activations, layer: Linear, *, quantize: bool, static: Tensor | None = None
    ) -> Activations:
        hidden = self.linear(x, layer)
        return self.join_gelu(attend(), hidden, quantize=quantize)


def _by_rows(weights: EngineWeights, originals: Any) -> EngineWeights:
    """The same weights with a scale for each row of MLPs, too, so that no scale is known before."""

    def of(layer: Linear, original: Any) -> Linear:
        return replace(layer, weight=quantize(original.weight.data.to(weights.device))) if layer.quantized else layer

    doubles = tuple(
        replace(
            block,
            text=replace(block.text, mlp_in=of(block.text.mlp_in, source.ff_context.net[0].proj)),
            image=replace(block.image, mlp_in=of(block.image.mlp_in, source.ff.net[0].proj)),
        )
        for block, source in zip(weights.doubles, originals.transformer_blocks, strict=True)
    )
    singles = tuple(
        replace(block, mlp_in=of(block.mlp_in, source.proj_mlp))
        for block, source in zip(weights.singles, originals.single_transformer_blocks, strict=True)
    )
    return replace(weights, doubles=doubles, singles=singles)


def main() -> int:
    """Load, compare, time, print and store."""
    parser = option_parser(__doc__)
    parser.add_argument("--checkpoint", default="random")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    if not has_gpu():
        return NO_GPU
    pipe = load(arguments.checkpoint).pipe
    pipe.set_progress_bar_config(disable=True)
    report: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cases": []}
    right = True
    for preset, most in ROUNDING.items():
        with accelerate(pipe, find_preset(preset), quiet=True):
            engine = require_engine(pipe.transformer, "engine").engine
            result = compared(pipe, engine, arguments.rounds)
        report["cases"].append({"preset": preset, "size": SIZE, **result})
        print(report["cases"][-1], flush=True)
        write_report(report, arguments.out)
        right &= all(error <= most for error in result["errors"].values())
    return 0 if right else 1


def compared(pipe: Any, engine: Any, rounds: int) -> dict[str, Any]:
    """How far each arm's velocity is from that of `apart`, and its median milliseconds of a step."""
    own, graphs, engine.graphs = (engine.ops, engine.weights), engine.graphs, None
    kernel = engine.ops.attention_kernel
    copying = type(engine.ops)(replace(kernel, run_into=None)), engine.weights
    arms = {"apart": (_Apart(kernel), _by_rows(engine.weights, pipe.transformer)), "copied": copying, "engine": own}
    errors: dict[str, float] = {}
    for batch in (2, 1):
        engine.ops, engine.weights = own
        inputs = first_step(pipe, engine, SIZE, batch)
        velocities = {name: _step(engine, arm, inputs)() for name, arm in arms.items()}
        for name, velocity in velocities.items():
            errors[f"{name}, {batch} at once"] = relative_error(velocity, velocities["apart"])
    steps = {name: _step(engine, arm, inputs) for name, arm in arms.items()}
    measured = in_turns(steps, rounds, NvmlDevice.of(pipe._execution_device))
    (engine.ops, engine.weights), engine.graphs = own, graphs
    return {"attention": kernel.name, "errors": errors, **measured}


def _step(engine: Any, arm: tuple[Any, EngineWeights], inputs: tuple[Any, ...]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        engine.ops, engine.weights = arm
        result: Tensor = engine.step(*inputs)
        return result

    return run


if __name__ == "__main__":
    sys.exit(main())
