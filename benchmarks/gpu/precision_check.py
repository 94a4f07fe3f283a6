"""Measure the error of the engine against diffusers, in bfloat16 and in float32, on the same noise.

    python -m benchmarks.gpu.precision_check [--checkpoint tiny] [--items 16] [--steps 28] [--side 1024] [--out FILE]

For every precision: the relative error of the first velocity, ||v - w|| / ||w||, and of the final latents, as means
over items. The float32 reference runs the same weights, rounded to bfloat16, without TF32. It receives timesteps and
guidance already rounded to bfloat16, so that only arithmetic differs: diffusers multiplies both by 1000 in the
pipeline's dtype, and in bfloat16 a guidance of 2.5 becomes 2496. On a GPU the checkpoint `random` takes 68 GB in
float32.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from benchmarks.gpu.check import option_parser, write_report
from benchmarks.gpu.latents import latents_of
from kontext_fast.datasets.shapes import held_out
from kontext_fast.errors import Refused
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.patching import replace_method
from kontext_fast.optimizations.techniques.engine import Engine
from kontext_fast.pipeline.load import load

PLANS: dict[str, str | list[Engine]] = {
    "faithful": "faithful",
    "precise": "precise",
    "balanced": "balanced",
    "fp8 with flash3_fp8": [Engine(precision="fp8", attention="flash3_fp8")],
}


@dataclass(frozen=True)
class Edit:
    """The inputs of one edit, the same for every pipeline."""

    image: Image
    instruction: str
    noise: Tensor
    """[1, tokens, channels] in float32, rounded to bfloat16."""


@dataclass(frozen=True)
class Outputs:
    """Of all items, in float32 on the CPU."""

    velocity: Tensor
    """[n, tokens, channels] at the first step."""
    latents: Tensor
    """[n, tokens, channels] after the last step."""


def main() -> int:
    """Run all pipelines, print and store the errors."""
    parser = option_parser(__doc__)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--device", help="default: the first GPU, else the CPU")
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--side", type=int, help="of the square image; default: the checkpoint's")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    loaded = load(arguments.checkpoint, device=arguments.device)
    pipe, steps = loaded.pipe, arguments.steps
    pipe.set_progress_bar_config(disable=True)
    side = arguments.side or pipe.vae.config.sample_size
    edits = [_edit(pipe, item, side, number) for number, item in enumerate(held_out(arguments.items))]
    pipe.to(torch.bfloat16)
    outputs = {"diffusers, bfloat16": run(pipe, edits, steps)}
    refused: dict[str, str] = {}
    for name, plan in PLANS.items():
        try:
            with accelerate(pipe, plan, quiet=True):
                outputs[name] = run(pipe, edits, steps)
        except Refused as error:
            refused[name] = str(error)
    pipe.to(torch.float32)
    with _inputs_rounded_to_bfloat16(pipe.transformer):
        reference = run(pipe, edits, steps)
    report: dict[str, Any] = {
        "checkpoint": loaded.facts.name, "weights_sha256": loaded.facts.weights_sha256, "items": arguments.items,
        "steps": steps, "size": [side, side], "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if pipe.device.type == "cuda" else "cpu",
    }  # fmt: skip
    report["errors"] = {
        name: {
            "against diffusers, bfloat16": _errors(result, outputs["diffusers, bfloat16"]),
            "against diffusers, float32": _errors(result, reference),
        }
        for name, result in outputs.items()
    }
    report["refused"] = refused
    print(json.dumps(report, indent=1))
    write_report(report, arguments.out)
    return 0


def _edit(pipe: Any, item: Any, side: int, seed: int) -> Edit:
    tokens, channels = (side // 16) ** 2, pipe.transformer.config.in_channels
    noise = torch.randn(1, tokens, channels, generator=torch.Generator().manual_seed(seed))
    return Edit(item.render(side), item.instruction, noise.bfloat16().float())


def run(pipe: Any, edits: Sequence[Edit], steps: int) -> Outputs:
    """First velocities and final latents of `edits`, each run alone."""
    scheduler, device = pipe.scheduler, pipe.transformer.device
    velocities: list[Tensor] = []

    def record_first(step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if scheduler.step_index in (None, 0):
            velocities.append(args[0].float().cpu())
        return step(*args, **kwargs)

    with ExitStack() as undo:
        replace_method(scheduler, "step", record_first, undo)
        # The noise is passed, since what a pipeline draws depends on its dtype.
        latents = [
            latents_of(pipe, [edit.image], [edit.instruction], steps=steps, noise=edit.noise.to(device)).float().cpu()
            for edit in edits
        ]
    return Outputs(torch.cat(velocities), torch.cat(latents))


@contextmanager
def _inputs_rounded_to_bfloat16(transformer: torch.nn.Module) -> Iterator[None]:
    """Round `timestep` and `guidance` of a float32 transformer wherever diffusers rounds them in bfloat16."""

    def rounded(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        timestep = (1000 * kwargs["timestep"]).bfloat16() / 1000
        for name, value in (("timestep", timestep), ("guidance", kwargs["guidance"].bfloat16())):
            kwargs[name] = (value * 1000).float() / 1000
        return args, kwargs

    hook = transformer.register_forward_pre_hook(rounded, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _errors(outputs: Outputs, reference: Outputs) -> dict[str, float]:
    return {
        "first step": _relative_error(outputs.velocity, reference.velocity),
        "final latents": _relative_error(outputs.latents, reference.latents),
    }


def _relative_error(outputs: Tensor, reference: Tensor) -> float:
    return float(((outputs - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)).mean())


if __name__ == "__main__":
    sys.exit(main())
