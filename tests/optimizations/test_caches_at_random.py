"""Every cache of inputs under random requests, more of them than it keeps: hits, misses and evictions change no bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.techniques.prompt_cache import PromptCache
from kontext_fast.optimizations.techniques.reference_latents_cache import ReferenceLatentsCache
from tests.pipelines import small_pipeline

KINDS, REQUESTS = 5, 40
Request = Callable[[Any], list[torch.Tensor]]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small_pipeline()


def prompts(rng: random.Random) -> list[Request]:
    """One or two texts in a call; the same text alone and beside another is not the same call."""
    texts = [["a cat"], ["a dog"], ["a cat", "a dog"], ["a dog", "a cat"], ["a cat "]]

    def of(prompt: list[str]) -> Request:
        return lambda pipe: list(pipe.encode_prompt(prompt=prompt, prompt_2=None, max_sequence_length=16)[:2])

    return [of(texts[rng.randrange(KINDS)]) for _ in range(REQUESTS)]


def images(rng: random.Random) -> list[Request]:
    """Among them two that differ in one pixel, and a batch of both."""
    first = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(rng.randrange(1000)))
    second = first.clone()
    second[0, 0, 0, 0] += 0.5
    kinds = [first, second, torch.cat([first, second]), first.flip(-1), first[..., :16, :]]

    def of(image: torch.Tensor) -> Request:
        return lambda pipe: [pipe._encode_vae_image(image, None)]

    return [of(kinds[rng.randrange(KINDS)]) for _ in range(REQUESTS)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("cache", "draw"),
    [(PromptCache(entries=3), prompts), (ReferenceLatentsCache(entries=3), images)],
    ids=["prompts", "images"],
)
def test_random_requests_get_the_bits_of_no_cache(
    cache: Optimization, draw: Callable[[random.Random], list[Request]], seed: int, pipe: Any
) -> None:
    requests = draw(random.Random(seed))
    with torch.no_grad():
        expected = [request(pipe) for request in requests]
        with accelerate(pipe, [cache], quiet=True) as acceleration:
            results = [request(pipe) for request in requests]
            facts = acceleration.facts[cache.name]
    assert facts["hits"] > 5, facts
    assert facts["misses"] > KINDS, "some were dropped and made again"
    for result, without in zip(results, expected, strict=True):
        assert all(torch.equal(*pair) for pair in zip(result, without, strict=True))
