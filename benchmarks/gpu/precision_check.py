"""How far the engine's results lie from those of diffusers, in bfloat16 and in float32, on the same noise.

    python -m benchmarks.gpu.precision_check [--checkpoint tiny] [--items 16] [--steps 28] [--side 1024] [--out FILE]

For every preset: the relative error of the first velocity, ||v - w|| / ||w||, and of the final latents, as means over
items. The float32 pipeline runs the same weights, rounded to bfloat16 as they are stored, without TF32, and is told the
same times and guidance: diffusers multiplies both by 1000 in the pipeline's dtype, and in bfloat16 a guidance of 2.5
becomes 2496. On a GPU the checkpoint `random` takes 68 GB in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from benchmarks.gpu.latents import latents_of
from kontext_fast.datasets.shapes import held_out
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.pipeline.load import load

PRESETS = ("faithful", "balanced")


@dataclass(frozen=True)
class Edit:
    """What every pipeline is given."""

    picture: Image
    instruction: str
    noise: Tensor
    """[1, tokens, channels] in float32, rounded to bfloat16."""


@dataclass(frozen=True)
class Made:
    """Of all items, in float32 on the CPU."""

    velocity: Tensor
    """[n, tokens, channels] at the first step."""
    latents: Tensor
    """[n, tokens, channels] after the last step."""


def main() -> int:
    """Run everything, print and store the errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--device", help="default: the first GPU, else the CPU")
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--side", type=int, help="of the square image; default: the checkpoint's")
    parser.add_argument("--out", type=Path, help="where to write the numbers, as JSON")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    loaded = load(arguments.checkpoint, device=arguments.device)
    pipe, steps = loaded.pipe, arguments.steps
    pipe.set_progress_bar_config(disable=True)
    side = arguments.side or pipe.vae.config.sample_size
    edits = [_edit(pipe, item, side, number) for number, item in enumerate(held_out(arguments.items))]
    pipe.to(torch.bfloat16)
    made = {"diffusers, bfloat16": run(pipe, edits, steps)}
    for preset in PRESETS:
        with accelerate(pipe, preset, quiet=True):
            made[preset] = run(pipe, edits, steps)
    pipe.to(torch.float32)
    with _told_as_in_bfloat16(pipe.transformer):
        wide = run(pipe, edits, steps)
    report: dict[str, Any] = {
        "checkpoint": loaded.facts.name, "weights_sha256": loaded.facts.weights_sha256, "items": arguments.items,
        "steps": steps, "size": [side, side], "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if pipe.device.type == "cuda" else "cpu",
    }  # fmt: skip
    report["errors"] = {
        name: {
            "against diffusers, bfloat16": _errors(one, made["diffusers, bfloat16"]),
            "against diffusers, float32": _errors(one, wide),
        }
        for name, one in made.items()
    }
    print(json.dumps(report, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _edit(pipe: Any, item: Any, side: int, seed: int) -> Edit:
    tokens, channels = (side // 16) ** 2, pipe.transformer.config.in_channels
    noise = torch.randn(1, tokens, channels, generator=torch.Generator().manual_seed(seed))
    return Edit(item.render(side), item.instruction, noise.bfloat16().float())


def run(pipe: Any, edits: Sequence[Edit], steps: int) -> Made:
    """First velocities and final latents of `edits`, each run alone."""
    scheduler, step = pipe.scheduler, pipe.scheduler.step
    first: list[Tensor] = []

    def watched(velocity: Tensor, *args: Any, **kwargs: Any) -> Any:
        if scheduler.step_index in (None, 0):
            first.append(velocity.float().cpu())
        return step(velocity, *args, **kwargs)

    scheduler.step = watched
    try:
        # The noise is given: what a pipeline draws depends on its dtype.
        latents = [
            latents_of(
                pipe, [edit.picture], [edit.instruction], steps=steps, noise=edit.noise.to(pipe.transformer.device)
            )
            .float()
            .cpu()
            for edit in edits
        ]
    finally:
        del scheduler.step
    return Made(torch.cat(first), torch.cat(latents))


@contextmanager
def _told_as_in_bfloat16(transformer: torch.nn.Module) -> Iterator[None]:
    """What a float32 pipeline passes as `timestep` and `guidance`, rounded wherever diffusers rounds in bfloat16."""

    def rounded(_module: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        divided = (1000 * named["timestep"]).bfloat16() / 1000
        for name, number in (("timestep", divided), ("guidance", named["guidance"].bfloat16())):
            named[name] = (number * 1000).float() / 1000
        return args, named

    hook = transformer.register_forward_pre_hook(rounded, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _errors(one: Made, other: Made) -> dict[str, float]:
    return {"first step": _apart(one.velocity, other.velocity), "final latents": _apart(one.latents, other.latents)}


def _apart(one: Tensor, other: Tensor) -> float:
    return float(((one - other).flatten(1).norm(dim=1) / other.flatten(1).norm(dim=1)).mean())


if __name__ == "__main__":
    sys.exit(main())
