"""Several edits as one batch: each sample gets what it gets alone, under every way of running the transformer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.pipeline.edit import EditRequest, edit, edit_together
from tests.pipelines import SIDE, picture, small_pipeline

STEPS = 4
# By how much of the largest latent rounding may move one: where values are rounded to fp8, one that lies between two
# of them goes either way.
FLOAT32, FP8 = 1e-3, 3e-2
ROUNDING = {
    "baseline": FLOAT32,
    "faithful": FLOAT32,
    "first_block_cache": FLOAT32,
    "prompt_cache": FLOAT32,
    "reference_latents_cache": FLOAT32,
    "balanced": FP8,
    "fast": FP8,
    "turbo": FP8,
}
REQUESTS = (
    EditRequest("make the red circle blue", picture(1), steps=STEPS, seed=3, batch=2),
    EditRequest("remove the star", picture(2), steps=STEPS, seed=11),
    EditRequest("make the background purple and move the ring to the top left", picture(3), steps=STEPS, seed=3),
)


@pytest.fixture(scope="module")
def pipe() -> Any:
    """Small, with weights large enough that every input reaches the output."""
    pipe = small_pipeline(double=2, single=2)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in pipe.transformer.parameters():
            if weight.ndim == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5)
    pipe.vae.register_to_config(sample_size=SIDE)
    return pipe


@contextmanager
def latents_of(pipe: Any) -> Iterator[list[np.ndarray]]:
    """What is decoded, before rounding to 8 bits hides small differences and clipping large ones."""
    captured: list[np.ndarray] = []
    decode = pipe.vae.decode

    def recording(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        captured.extend(latents.numpy().copy())
        return decode(latents, *args, **kwargs)

    vars(pipe.vae)["decode"] = recording
    try:
        yield captured
    finally:
        del vars(pipe.vae)["decode"]


@pytest.mark.parametrize("preset", ROUNDING)
def test_batched_images_equal_single_ones(preset: str, pipe: Any) -> None:
    with accelerate(pipe, preset, quiet=True):
        with latents_of(pipe) as together:
            results = edit_together(pipe, REQUESTS)
        with latents_of(pipe) as alone:
            single = [edit(pipe, request) for request in REQUESTS]
    assert [result.seeds for result in results] == [(3, 4), (11,), (3,)]
    assert [len(result.images) for result in results] == [2, 1, 1]
    assert [result.step_kinds for result in results] == [result.step_kinds for result in single]
    for batched, single in zip(together, alone, strict=True):
        assert np.abs(batched - single).max() < ROUNDING[preset] * np.abs(single).max()
    # The comparison could fail: no two of the four are alike.
    scale = np.abs(alone[0]).max()
    assert min(np.abs(a - b).max() for i, a in enumerate(alone) for b in alone[:i]) > 0.3 * scale


def test_text_to_image_and_negative_prompts_run_together(pipe: Any) -> None:
    texts = [EditRequest(text, steps=2, seed=1, size=(64, 64)) for text in ("a red circle", "a blue star")]
    assert len(edit_together(pipe, texts)) == 2
    guided = [
        EditRequest(f"make it {color}", picture(1), steps=2, seed=1, negative=negative, true_cfg=2.0)
        for color, negative in (("red", "blurry"), ("blue", "dark"))
    ]
    for result, request in zip(edit_together(pipe, guided), guided, strict=True):
        alone = np.asarray(edit(pipe, request).images[0]).astype(int)
        assert np.abs(np.asarray(result.images[0]) - alone).max() <= 2


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 3},
        {"guidance": 3.0},
        {"image": None},
        {"size": (128, 64)},
        {"image": Image.new("RGB", (128, 64))},
        {"negative": "blurry", "true_cfg": 2.0},
    ],
)
def test_requests_that_cannot_share_a_batch_are_refused(changes: dict[str, Any], pipe: Any) -> None:
    with pytest.raises(InvalidInput, match="need the same steps"):
        edit_together(pipe, [REQUESTS[0], replace(REQUESTS[0], **changes)])


def test_empty_batch_is_refused(pipe: Any) -> None:
    with pytest.raises(InvalidInput, match="at least one"):
        edit_together(pipe, [])
