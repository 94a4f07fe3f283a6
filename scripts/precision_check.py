"""How far the engine's results lie from those of diffusers, in bfloat16 and in float32, on the same noise.

    python scripts/precision_check.py [--checkpoint tiny] [--items 16] [--steps 28] [--size 1024x1024] [--out FILE.json]

For every preset: the relative error of the first velocity, ||v - w|| / ||w||, and of the final latents, as means over
items. The float32 pipeline runs the same weights, rounded to bfloat16 as they are stored, without TF32. On a GPU the
checkpoint `random` takes 68 GB in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kontext_fast.items.shapes import held_out
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.pipeline.edit import EditRequest, edit_together
from kontext_fast.pipeline.load import load
from kontext_fast.pipeline.sizes import parse_size

PRESETS = ("faithful", "balanced")


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
    parser.add_argument("--size", help="WxH; default: the checkpoint's")
    parser.add_argument("--out", type=Path, help="where to write the numbers, as JSON")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    loaded = load(arguments.checkpoint, device=arguments.device)
    pipe = loaded.pipe
    size = parse_size(arguments.size) if arguments.size else None
    side = max(size) if size else pipe.vae.config.sample_size
    requests = [
        EditRequest(item.instruction, item.render(side), steps=arguments.steps, seed=index, size=size)
        for index, item in enumerate(held_out(arguments.items))
    ]
    pipe.to(torch.bfloat16)
    made = {"diffusers, bfloat16": run(pipe, requests)}
    for preset in PRESETS:
        with accelerate(pipe, preset, quiet=True):
            made[preset] = run(pipe, requests)
    pipe.to(torch.float32)
    wide = run(pipe, requests)
    report: dict[str, Any] = {
        "checkpoint": loaded.facts.name, "weights_sha256": loaded.facts.weights_sha256, "items": arguments.items,
        "steps": arguments.steps, "size": [side, side] if size is None else list(size), "torch": torch.__version__,
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


def run(pipe: Any, requests: list[EditRequest]) -> Made:
    """First velocities and final latents of `requests`, each run alone."""
    scheduler, step = pipe.scheduler, pipe.scheduler.step
    velocities: list[Tensor] = []
    latents: list[Tensor] = []

    def watched(velocity: Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(velocities) == len(latents):
            velocities.append(velocity.float().cpu())
        result = step(velocity, *args, **kwargs)
        if scheduler.step_index == len(scheduler.timesteps):
            latents.append(result[0].float().cpu())
        return result

    scheduler.step = watched
    try:
        for request in requests:
            edit_together(pipe, [request])
    finally:
        del scheduler.step
    return Made(torch.cat(velocities), torch.cat(latents))


def _errors(one: Made, other: Made) -> dict[str, float]:
    return {"first step": _apart(one.velocity, other.velocity), "final latents": _apart(one.latents, other.latents)}


def _apart(one: Tensor, other: Tensor) -> float:
    return float(((one - other).flatten(1).norm(dim=1) / other.flatten(1).norm(dim=1)).mean())


if __name__ == "__main__":
    sys.exit(main())
