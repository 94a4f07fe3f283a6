"""Pipelines small enough to run hundreds of steps in a test, cut from the bundled checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import kontext_fast

TINY = Path(kontext_fast.__file__).parent / "pipeline" / "checkpoints" / "tiny"
SIDE = 64


@cache
def _tiny() -> Any:
    from diffusers import FluxKontextPipeline

    pipe = FluxKontextPipeline.from_pretrained(TINY, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def small_pipeline(double: int = 1, single: int = 1) -> Any:
    """A FluxKontextPipeline of its own in float32 on the CPU, with only the first blocks of each kind."""
    pipe = copy.deepcopy(_tiny())
    transformer = pipe.transformer
    transformer.transformer_blocks = transformer.transformer_blocks[:double]
    transformer.single_transformer_blocks = transformer.single_transformer_blocks[:single]
    transformer.register_to_config(num_layers=double, num_single_layers=single)
    return pipe


def picture(seed: int = 0) -> Image.Image:
    """Four random colours, one per quarter."""
    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(colours, np.ones((SIDE // 2, SIDE // 2, 1), np.uint8)))


def render(
    pipe: Any,
    *,
    prompts: tuple[str, ...] = ("make the background red",),
    seeds: tuple[int, ...] = (1,),
    steps: int = 4,
    negative: str | None = None,
    photo: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[B, SIDE, SIDE, 3] in 0..1, one image per prompt, of `picture(photo)`; a negative prompt switches true CFG on."""

    def step_end(_pipe: Any, step: int, _time: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(step)
        return {}

    result = pipe(
        image=picture(photo),
        prompt=list(prompts),
        negative_prompt=None if negative is None else [negative] * len(prompts),
        true_cfg_scale=1.0 if negative is None else 2.0,
        height=SIDE,
        width=SIDE,
        max_area=SIDE * SIDE,
        _auto_resize=False,
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        max_sequence_length=48,
        callback_on_step_end=step_end,
        output_type="np",
    )
    images: np.ndarray[Any, np.dtype[np.float32]] = result.images
    return images
