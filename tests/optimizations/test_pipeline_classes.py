"""Every pipeline of FLUX.1 that diffusers has, accelerated and stock, and pipelines that lack a part."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import accelerate
from tests.pipelines import SIDE, picture, small_pipeline

MASK = Image.fromarray(np.pad(np.full((SIDE // 2, SIDE // 2), 255, np.uint8), SIDE // 4))
CALLS: dict[str, dict[str, Any]] = {
    "FluxKontextInpaintPipeline": {
        "image": picture(),
        "mask_image": MASK,
        "strength": 0.7,
        "max_area": SIDE * SIDE,
        "_auto_resize": False,
    },
    "FluxImg2ImgPipeline": {"image": picture(), "strength": 0.7},
    "FluxInpaintPipeline": {"image": picture(), "mask_image": MASK, "strength": 0.7},
    "FluxFillPipeline": {"image": picture(), "mask_image": MASK},
    "FluxPipeline": {},
}
LIMITS = {
    "faithful": 1e-5,
    "balanced": 0.01,
    "fast": 0.1,
    "low_memory": 0.01,
    "prompt_cache": 0.0,
    "reference_latents_cache": 0.0,
    "device_pixels": 0.0,
    "first_block_cache": 0.1,
}


def pipeline_of(name: str) -> Any:
    """A pipeline of the class `name`, of tiny's first blocks; that of Fill reads 384 channels."""
    parts = small_pipeline().components
    if name == "FluxFillPipeline":
        parts["transformer"] = fill_transformer(parts["transformer"])
    kind = getattr(diffusers, name)
    accepted = inspect.signature(kind.__init__).parameters
    pipe = kind(**{part: model for part, model in parts.items() if part in accepted})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def fill_transformer(transformer: Any) -> Any:
    config = {key: value for key, value in transformer.config.items() if not key.startswith("_")}
    wider = FluxTransformer2DModel.from_config({**config, "in_channels": 384, "out_channels": 64})
    weights = transformer.state_dict()
    added = 0.02 * torch.randn(len(weights["x_embedder.weight"]), 320, generator=torch.Generator().manual_seed(0))
    wider.load_state_dict({**weights, "x_embedder.weight": torch.cat([weights["x_embedder.weight"], added], dim=1)})
    return wider.eval()


def run(pipe: Any, name: str, **changed: Any) -> Any:
    call = {"prompt": "make the background red", "height": SIDE, "width": SIDE, "num_inference_steps": 4}
    seed = torch.Generator().manual_seed(0)
    arguments = {**call, "max_sequence_length": 48, "output_type": "np", **CALLS[name], **changed}
    return pipe(**arguments, generator=seed).images


ALL_PRESETS = pytest.param(tuple(LIMITS), marks=pytest.mark.slow)


@pytest.mark.parametrize("presets", [("faithful", "fast"), ALL_PRESETS], ids=["some", "all"])
@pytest.mark.parametrize("name", CALLS)
def test_every_class_gives_the_image_of_stock(name: str, presets: tuple[str, ...]) -> None:
    pipe = pipeline_of(name)
    stock = run(pipe, name)
    for preset in presets:
        if (name, preset) == ("FluxPipeline", "reference_latents_cache"):
            continue  # refused: there is no image
        limit = LIMITS[preset]
        with accelerate(pipe, preset, quiet=True) as acceleration:
            assert np.abs(run(pipe, name) - stock).mean() <= limit, preset
            assert len(acceleration.last_step_kinds()) == (3 if "strength" in CALLS[name] else 4)
        np.testing.assert_array_equal(run(pipe, name), stock)


@pytest.mark.parametrize("name", ["FluxKontextInpaintPipeline", "FluxFillPipeline"])
def test_copies_of_every_kind_are_unaccelerated(name: str) -> None:
    pipe = pipeline_of(name)
    stock = run(pipe, name)
    with accelerate(pipe, "balanced", quiet=True):
        for duplicate in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
            assert type(duplicate).__name__ == name
            np.testing.assert_array_equal(run(duplicate, name), stock)


def test_solver_refuses_a_strength() -> None:
    name = "FluxImg2ImgPipeline"
    pipe = pipeline_of(name)
    with accelerate(pipe, "solver", quiet=True):
        with pytest.raises(InvalidInput, match=r"strength of 0\.7"):
            run(pipe, name)
        assert np.isfinite(run(pipe, name, strength=1.0)).all()


def test_other_pipelines_are_refused_with_the_list() -> None:
    with pytest.raises(InvalidInput, match="FluxFillPipeline"):
        accelerate(object())


ENCODED = ("prompt_embeds", "pooled_prompt_embeds")
ENCODERS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
SLOW = ("fast", "prompt_cache", "fused_vae", "device_pixels")
STAGED_PRESETS = ("faithful", "low_memory", *(pytest.param(preset, marks=pytest.mark.slow) for preset in SLOW))


@pytest.mark.parametrize("preset", STAGED_PRESETS)
@pytest.mark.parametrize("absent", [("vae",), ENCODERS], ids=["vae", "text"])
def test_pipelines_without_a_part_run_as_stock(preset: str, absent: tuple[str, ...]) -> None:
    whole = small_pipeline()
    embeds = dict(zip(ENCODED, whole.encode_prompt("make it red", None, max_sequence_length=48)[:2], strict=True))
    pipe = type(whole)(**{**whole.components, **dict.fromkeys(absent)})
    pipe.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"image": picture()} if "vae" not in absent else {}
    shape = {"height": SIDE, "width": SIDE, "max_area": SIDE * SIDE, "_auto_resize": False, "num_inference_steps": 2}
    if absent == ("vae",):
        # Without its configuration the pipeline takes that of the full-size one, which compresses 8 to 1.
        shape = {"height": 32, "width": 32, "max_area": 32 * 32, "_auto_resize": False, "num_inference_steps": 2}

    def latents() -> Any:
        seed = torch.Generator().manual_seed(0)
        return pipe(**embeds, **given, **shape, generator=seed, output_type="latent").images

    stock = latents()
    with accelerate(pipe, preset, quiet=True):
        assert torch.isfinite(latents()).all()
        assert (latents() - stock).abs().mean() <= 0.1 * stock.abs().mean()
    assert torch.equal(latents(), stock)
