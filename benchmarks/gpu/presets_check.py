"""Check that what presets have on CUDA alone changes no bit of an image.

Usage: python -m benchmarks.gpu.presets_check [--checkpoint tiny] [--presets NAME,...] [--size WxH] [--steps N]
           [--out FILE.json]

Each preset edits two pictures without what it has on CUDA, then with it, three times each.
Exit code 0: done; 1: an image differs, or no graph was replayed or no pixel crossed; 3: no GPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.check import NO_GPU, has_gpu, option_parser, write_report
from kontext_fast.datasets.shapes import held_out
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.presets import PRESETS
from kontext_fast.pipeline.edit import EditRequest, edit
from kontext_fast.pipeline.load import load
from kontext_fast.pipeline.sizes import Size, parse_size

WITH_ADDITIONS = tuple(name for name, preset in PRESETS.items() if preset.on_cuda)
_REPETITIONS = 3


def main() -> int:
    """Load, compare, print and store."""
    parser = option_parser(__doc__)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--presets", default=",".join(WITH_ADDITIONS))
    parser.add_argument("--size", type=parse_size, default=None)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    if not has_gpu():
        return NO_GPU
    loaded = load(arguments.checkpoint)
    report: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "checkpoint": arguments.checkpoint, "presets": {}}
    for name in arguments.presets.split(","):
        began = perf_counter()
        outcome = compared(loaded.pipe, name, arguments.size, arguments.steps, random=loaded.facts.random_weights)
        outcome["seconds"] = perf_counter() - began
        report["presets"][name] = outcome
        print(name, json.dumps(outcome), flush=True)
        # After each, so that a check that is stopped keeps what it knows.
        write_report(report, arguments.out)
    return 0 if all(map(is_right, report["presets"].values())) else 1


def compared(pipe: Any, name: str, size: Size | None, steps: int, *, random: bool = False) -> dict[str, Any]:
    """Whether each image of the preset `name` is equal with what it has on CUDA, and the facts of that."""
    preset = PRESETS[name]
    everywhere = preset.on_random if random and preset.on_random is not None else preset.optimizations
    side = size[0] if size else pipe.vae.config.sample_size
    requests = [
        EditRequest(item.instruction, item.render(side), steps=steps, seed=index, size=size)
        for index, item in enumerate(held_out(2))
    ]
    expected = _images(pipe, everywhere, requests, 1)[0]
    images, facts = _images(pipe, (*everywhere, *preset.on_cuda), requests, _REPETITIONS)
    return {"equal": all(map(np.array_equal, images, expected * _REPETITIONS)), "facts": facts}


def _images(
    pipe: Any, optimizations: Sequence[Optimization], requests: Sequence[EditRequest], repetitions: int
) -> tuple[list[Any], dict[str, Any]]:
    """Of each request, all `repetitions` times in turn, and the facts of what CUDA alone has."""
    with accelerate(pipe, optimizations, quiet=True) as acceleration:
        images = [np.asarray(edit(pipe, request).images[0]) for _ in range(repetitions) for request in requests]
        names = [name for name in ("text_graphs", "device_pixels") if name in acceleration.facts]
        facts: dict[str, Any] = {name: dict(acceleration.facts[name]) for name in names}
    return images, facts


def is_right(outcome: dict[str, Any]) -> bool:
    """Whether all images are equal, and what was added did something."""
    facts = outcome["facts"]
    graphs = "text_graphs" not in facts or facts["text_graphs"]["replays"] > 0
    return bool(outcome["equal"] and graphs and facts["device_pixels"]["read"] and facts["device_pixels"]["written"])


if __name__ == "__main__":
    sys.exit(main())
