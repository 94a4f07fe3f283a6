"""The prompt cache: the same bits without running the encoders, and never those of other words or weights."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.techniques.prompt_cache import PromptCache
from tests.pipelines import render, small_pipeline

RED, REMOVE = "make the background red", "remove the circle"


@pytest.fixture
def pipe() -> Any:
    return small_pipeline()


def calls(pipe: Any, undo: ExitStack) -> list[str]:
    """Grows by a name whenever an encoder runs."""
    ran: list[str] = []
    for name in ("text_encoder", "text_encoder_2"):
        handle = getattr(pipe, name).register_forward_hook(lambda *_, name=name: ran.append(name))
        undo.callback(handle.remove)
    return ran


def test_repeated_prompt_is_encoded_once(pipe: Any) -> None:
    untouched = render(pipe)
    with accelerate(pipe, [PromptCache()], quiet=True) as acceleration, ExitStack() as undo:
        np.testing.assert_array_equal(render(pipe), untouched)
        ran = calls(pipe, undo)
        np.testing.assert_array_equal(render(pipe), untouched)
        assert ran == []
        assert acceleration.facts["prompt_cache"] == {"hits": 1, "misses": 1}


def test_other_prompts_and_batches_are_misses(pipe: Any) -> None:
    chosen: list[dict[str, Any]] = [
        {"prompts": (RED,)},
        {"prompts": (REMOVE,)},
        {"prompts": (RED, REMOVE), "seeds": (1, 2)},
        {"prompts": (REMOVE, RED), "seeds": (1, 2)},
        {"prompts": (RED,), "negative": REMOVE},
    ]
    untouched = [render(pipe, **one) for one in chosen]
    with accelerate(pipe, [PromptCache()], quiet=True) as acceleration:
        for _ in range(2):
            for one, expected in zip(chosen, untouched, strict=True):
                np.testing.assert_array_equal(render(pipe, **one), expected)
        # The last one asks for two, both of which the first two left.
        assert acceleration.facts["prompt_cache"] == {"hits": 8, "misses": 4}


def test_least_recently_used_prompt_is_dropped(pipe: Any) -> None:
    with accelerate(pipe, [PromptCache(entries=2)], quiet=True) as acceleration:
        for prompt in (RED, REMOVE, RED, "three", RED, REMOVE):
            pipe.encode_prompt(prompt, max_sequence_length=48)
        assert acceleration.facts["prompt_cache"] == {"hits": 2, "misses": 4}


def test_writing_to_a_result_leaves_the_cache_intact(pipe: Any) -> None:
    with accelerate(pipe, [PromptCache()], quiet=True):
        first = [tensor.clone() for tensor in pipe.encode_prompt(RED, max_sequence_length=48)]
        for _ in range(2):
            for tensor, expected in zip(pipe.encode_prompt(RED, max_sequence_length=48), first, strict=True):
                assert torch.equal(tensor, expected)
                tensor += 1


@pytest.mark.parametrize("change", ["counted", "behind its back", "replaced"])
def test_changed_encoder_empties_the_cache(pipe: Any, change: str) -> None:
    encoder = pipe.text_encoder_2
    with accelerate(pipe, [PromptCache()], quiet=True):
        before, *_ = pipe.encode_prompt(RED, max_sequence_length=48)
        if change == "replaced":
            pipe.text_encoder_2 = encoder = copy.deepcopy(encoder)
        matrix = encoder.encoder.block[0].layer[0].SelfAttention.v.weight
        with torch.no_grad():
            (matrix.data if change == "behind its back" else matrix).mul_(2)
        after, *_ = pipe.encode_prompt(RED, max_sequence_length=48)
    assert not torch.equal(after, before)


def test_another_tokenizer_makes_the_same_words_others(pipe: Any) -> None:
    with accelerate(pipe, [PromptCache()], quiet=True) as acceleration:
        for tokenizer in (pipe.tokenizer_2, copy.deepcopy(pipe.tokenizer_2), pipe.tokenizer_2):
            pipe.tokenizer_2 = tokenizer
            pipe.encode_prompt(RED, max_sequence_length=48)
        assert acceleration.facts["prompt_cache"] == {"hits": 1, "misses": 2}


def test_moving_encoders_and_back_keeps_the_cache(pipe: Any) -> None:
    with accelerate(pipe, [PromptCache()], quiet=True) as acceleration:
        pipe.encode_prompt(RED, max_sequence_length=48)
        for parameter in pipe.text_encoder_2.parameters():
            parameter.data = parameter.data.clone()
        pipe.encode_prompt(RED, max_sequence_length=48)
        assert acceleration.facts["prompt_cache"]["hits"] == 1


def test_copied_pipeline_has_no_cache(pipe: Any) -> None:
    with accelerate(pipe, [PromptCache()], quiet=True) as acceleration, ExitStack() as undo:
        pipe.encode_prompt(RED, max_sequence_length=48)
        duplicate = copy.deepcopy(pipe)
        ran = calls(duplicate, undo)
        duplicate.encode_prompt(RED, max_sequence_length=48)
        assert ran == ["text_encoder", "text_encoder_2"]
        assert acceleration.facts["prompt_cache"] == {"hits": 0, "misses": 1}


def test_given_embeddings_pass_through(pipe: Any) -> None:
    embedded, pooled, _ = pipe.encode_prompt(RED, max_sequence_length=48)
    with accelerate(pipe, [PromptCache()], quiet=True) as acceleration:
        result, *_ = pipe.encode_prompt(None, prompt_embeds=embedded, pooled_prompt_embeds=pooled)
        assert result is embedded
        assert acceleration.facts["prompt_cache"] == {"hits": 0, "misses": 0}


def test_label_says_that_repeated_prompts_are_not_encoded() -> None:
    assert PromptCache().label(architecture_only=False) == (
        "prompt_cache: prompts that are repeated are not encoded again, so times hold for repeated prompts only"
    )


def test_lists_of_prompts_are_kept_as_their_words(pipe: Any) -> None:
    with accelerate(pipe, [PromptCache()], quiet=True) as acceleration:
        for prompts in ([RED, REMOVE], [RED, REMOVE], [REMOVE, RED], RED, [RED]):
            pipe.encode_prompt(prompts, max_sequence_length=48)
        assert acceleration.facts["prompt_cache"] == {"hits": 1, "misses": 4}
