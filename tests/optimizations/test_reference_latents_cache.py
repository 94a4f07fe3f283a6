"""The cache of reference latents: the same bits without running the encoder, and never those of other pixels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.techniques.reference_latents_cache import ReferenceLatentsCache
from tests.pipelines import render, small_pipeline


@pytest.fixture
def pipe() -> Any:
    return small_pipeline()


def encode(pipe: Any, image: torch.Tensor, generator: Any = None) -> torch.Tensor:
    with torch.no_grad():
        latents: torch.Tensor = pipe._encode_vae_image(image, generator)
    return latents


def test_repeated_pixels_are_encoded_once(pipe: Any) -> None:
    untouched = render(pipe)
    with accelerate(pipe, [ReferenceLatentsCache()], quiet=True) as acceleration:
        np.testing.assert_array_equal(render(pipe), untouched)
        handle = pipe.vae.encoder.register_forward_hook(lambda *_: pytest.fail("the encoder ran again"))
        np.testing.assert_array_equal(render(pipe), untouched)
        np.testing.assert_array_equal(render(pipe, seeds=(2,)).shape, untouched.shape)
        handle.remove()
        assert acceleration.facts["reference_latents_cache"] == {"hits": 2, "misses": 1}


def test_one_changed_pixel_is_a_miss(pipe: Any) -> None:
    image = torch.rand(1, 3, 32, 32)
    other = image.clone()
    other[0, 2, 31, 31] += 0.5
    expected = [encode(pipe, one) for one in (image, other)]
    assert not torch.equal(*expected)
    with accelerate(pipe, [ReferenceLatentsCache()], quiet=True):
        for _ in range(2):
            for one, latents in zip((image, other), expected, strict=True):
                assert torch.equal(encode(pipe, one), latents)


def test_least_recently_used_image_is_dropped(pipe: Any) -> None:
    first, second, third = torch.rand(3, 1, 3, 32, 32)
    with accelerate(pipe, [ReferenceLatentsCache(entries=2)], quiet=True) as acceleration:
        for image in (first, second, first, third, first, second):
            encode(pipe, image)
        assert acceleration.facts["reference_latents_cache"] == {"hits": 2, "misses": 4}


def test_hit_on_either_of_two_images_returns_its_latents(pipe: Any) -> None:
    first, second = torch.rand(2, 1, 3, 32, 32)
    with accelerate(pipe, [ReferenceLatentsCache()], quiet=True) as acceleration:
        expected = [encode(pipe, image) for image in (first, second)]
        assert torch.equal(encode(pipe, second), expected[1])
        assert torch.equal(encode(pipe, first), expected[0])
        assert acceleration.facts["reference_latents_cache"] == {"hits": 2, "misses": 2}


def test_writing_to_a_result_leaves_the_cache_intact(pipe: Any) -> None:
    image = torch.rand(1, 3, 32, 32)
    expected = encode(pipe, image)
    with accelerate(pipe, [ReferenceLatentsCache()], quiet=True):
        mine = image.clone()
        encode(pipe, mine).add_(1)
        mine.add_(1)
        assert torch.equal(encode(pipe, image), expected)
        assert not torch.equal(encode(pipe, mine), expected)


def test_changed_vae_empties_the_cache(pipe: Any) -> None:
    image = torch.rand(1, 3, 32, 32)
    with accelerate(pipe, [ReferenceLatentsCache()], quiet=True) as acceleration:
        before = encode(pipe, image)
        pipe.vae.encoder.conv_in.weight.data.mul_(2)
        assert not torch.equal(encode(pipe, image), before)
        encode(pipe, image, [torch.Generator()])
        pipe.vae.enable_tiling()
        encode(pipe, image)
        assert acceleration.facts["reference_latents_cache"] == {"hits": 0, "misses": 4}


def test_copied_pipeline_has_no_cache(pipe: Any) -> None:
    image = torch.rand(1, 3, 32, 32)
    with accelerate(pipe, [ReferenceLatentsCache()], quiet=True) as acceleration:
        encode(pipe, image)
        encode(copy.deepcopy(pipe), image)
        assert acceleration.facts["reference_latents_cache"] == {"hits": 0, "misses": 1}


def test_pipeline_without_input_image_is_refused(pipe: Any) -> None:
    from diffusers import FluxPipeline

    names = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
    generate = FluxPipeline(**{name: getattr(pipe, name) for name in names})
    with pytest.raises(
        InvalidInput,
        match=r"^reference_latents_cache needs a pipeline with an input image; leave it out for text-to-image\.$",
    ):
        accelerate(generate, [ReferenceLatentsCache()], quiet=True)


def test_label_says_that_repeated_images_are_not_encoded() -> None:
    assert ReferenceLatentsCache().label(architecture_only=False) == (
        "reference_latents_cache: images that are repeated are not encoded again, so times hold for repeated images "
        "only"
    )


@pytest.mark.parametrize("change", [lambda vae: vae.enable_tiling(), lambda vae: vae.enable_slicing()])
def test_each_way_of_encoding_has_latents_of_its_own(pipe: Any, change: Callable[[Any], None]) -> None:
    image = torch.rand(1, 3, 32, 32)
    with accelerate(pipe, [ReferenceLatentsCache()], quiet=True) as acceleration:
        encode(pipe, image)
        change(pipe.vae)
        encode(pipe, image)
        encode(pipe, image.double().float())
        encode(pipe, torch.cat([image, image]))
        assert acceleration.facts["reference_latents_cache"] == {"hits": 1, "misses": 3}


def test_generators_of_their_own_have_images_encoded_one_by_one(pipe: Any) -> None:
    images, batches = torch.rand(2, 3, 32, 32), []
    pipe.vae.encoder.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    with accelerate(pipe, [ReferenceLatentsCache()], quiet=True):
        encode(pipe, images, [torch.Generator(), torch.Generator()])
        encode(pipe, images, torch.Generator())
    assert batches == [1, 1, 2]
