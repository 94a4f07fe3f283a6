"""diffusers runs exactly what the plan says: watched at the transformer, where a changed size cannot hide."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from PIL import Image

from kontext_fast.pipeline.edit import EditRequest, edit
from kontext_fast.pipeline.sizes import TRAINED_SIZES, Size

Call = tuple[int, int, int]


@contextmanager
def watched(pipe: Any) -> Iterator[list[Call]]:
    """Text, image and reference tokens of each transformer call; the first id channel tells the last two apart."""
    calls: list[Call] = []

    def watch(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        is_reference = kwargs["img_ids"][:, 0] == 1
        assert kwargs["hidden_states"].shape[1] == len(is_reference)
        text = kwargs["encoder_hidden_states"].shape[1]
        calls.append((text, int((~is_reference).sum()), int(is_reference.sum())))

    hook = pipe.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


@contextmanager
def native_megapixel(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The sizes of FLUX.1-Kontext-dev without its work: only shapes pass through the networks."""

    def encode(pixels: torch.Tensor) -> AutoencoderKLOutput:
        batch, _, height, width = pixels.shape
        return AutoencoderKLOutput(DiagonalGaussianDistribution(torch.zeros(batch, 32, height // 8, width // 8)))

    def decode(latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        batch, _, height, width = latents.shape
        return (torch.zeros(batch, 3, height * 8, width * 8),)

    def transform(**kwargs: Any) -> tuple[torch.Tensor]:
        return (torch.zeros_like(kwargs["hidden_states"]),)

    native = pipe.vae.config.sample_size
    pipe.vae.register_to_config(sample_size=1024)
    with monkeypatch.context() as patch:
        patch.setattr(pipe.vae, "encode", encode)
        patch.setattr(pipe.vae, "decode", decode)
        patch.setattr(pipe.transformer, "forward", transform)
        try:
            yield
        finally:
            pipe.vae.register_to_config(sample_size=native)


def check(pipe: Any, image: Size | None, requested: Size | None) -> None:
    picture = Image.new("RGB", image) if image else None
    with watched(pipe) as calls:
        result = edit(pipe, EditRequest("make it red", picture, steps=1, seed=0, size=requested))
    planned = result.size
    assert calls == [(planned.text_tokens, planned.image_tokens, planned.reference_tokens)]
    assert result.images[0].size == planned.size
    if requested:
        assert planned.size == requested


@pytest.mark.parametrize("size", TRAINED_SIZES)
def test_every_trained_size_runs_as_planned(tiny: Any, monkeypatch: pytest.MonkeyPatch, size: Size) -> None:
    with native_megapixel(tiny, monkeypatch):
        check(tiny, size, None)
        check(tiny, None, size)
        check(tiny, (512, 512), size)


@pytest.mark.parametrize("count", [12, pytest.param(400, marks=pytest.mark.slow)])
def test_many_megapixel_sizes_run_as_planned(tiny: Any, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    draw = random.Random(0)
    with native_megapixel(tiny, monkeypatch):
        for _ in range(count):
            image = (draw.randint(500, 1900), draw.randint(500, 1900))
            check(tiny, image, draw.choice([None, (16 * draw.randint(10, 80), 16 * draw.randint(10, 80))]))


def test_many_small_sizes_really_run_as_planned(tiny: Any) -> None:
    draw = random.Random(1)
    for _ in range(12):
        image = draw.choice([None, (draw.randint(60, 200), draw.randint(60, 200))])
        check(tiny, image, draw.choice([None, (16 * draw.randint(1, 12), 16 * draw.randint(1, 12))]))
