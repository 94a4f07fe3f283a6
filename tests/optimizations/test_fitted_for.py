"""What is said of weights and calls that a solver was not fitted to, word for word."""

from __future__ import annotations

from typing import Any

import pytest
from torch.nn import Linear

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.fitted_for import FittedFor
from kontext_fast.optimizations.weight_identity import identity_of

NOT_MEASURED = "where how near it comes was not measured."
EDIT = {"num_inference_steps": 8, "guidance_scale": 3.5, "image": "a"}


def fitted(weights: Any, **changes: Any) -> FittedFor:
    usual = {"checkpoint": "small", "weights": weights, "target": "steps", "steps": 8, "guidance": (3.5, 3.5)}
    return FittedFor(**{**usual, **changes})


@pytest.mark.parametrize(("loras", "words"), [((), " without a LoRA"), (("a", "b"), " with a and b")])
def test_other_matrices_get_a_caution_and_other_vectors_a_refusal(loras: tuple[str, ...], words: str) -> None:
    layer = Linear(2, 2)
    solver = fitted(identity_of(layer), loras=loras)
    assert list(solver.cautions_about_weights(layer)) == []
    layer.weight.data += 1
    assert list(solver.cautions_about_weights(layer)) == [
        f"The solver was fitted to small{words}; these weights have another LoRA or none, so how near it comes was "
        "not measured: fit it to them with kontext tune."
    ]
    layer.bias.data += 1
    with pytest.raises(InvalidInput) as caught:
        list(solver.cautions_about_weights(layer))
    assert str(caught.value) == (
        "This solver was fitted to small, and these are other weights; fit one to them with kontext tune, or use a "
        "preset without a solver."
    )


@pytest.mark.parametrize(
    ("changes", "caution"),
    [
        ({}, None),
        ({"num_inference_steps": None, "guidance_scale": None}, None),
        (
            {"num_inference_steps": 7},
            "The solver stands for 8 steps, and 7 were asked for; it runs as it was fitted.",
        ),
        ({"guidance_scale": 2.0}, None),
        ({"guidance_scale": 5.0}, None),
        ({"guidance_scale": 1.9}, f"The solver was fitted at guidance 3.5 and runs at 1.9, {NOT_MEASURED}"),
        ({"guidance_scale": 5.1}, f"The solver was fitted at guidance 3.5 and runs at 5.1, {NOT_MEASURED}"),
        (
            {"image": None},
            "The solver was fitted to edits and runs text-to-image, where it comes much less near.",
        ),
        ({"negative_prompt": "b"}, None),
        ({"negative_prompt": "b", "true_cfg_scale": 1}, None),
        ({"true_cfg_scale": 2}, None),
        *(
            (
                {given: "b", "true_cfg_scale": 1.5},
                f"The solver was fitted without true CFG and runs with it, {NOT_MEASURED}",
            )
            for given in ("negative_prompt", "negative_prompt_embeds")
        ),
        ({"width": 64, "height": 48}, None),
        ({"width": 32}, None),
        ({"height": 32}, None),
        # As the pipeline rounds: 95 and 65 are 80 and 64; an area of 1024 around 1:4 is 16x64.
        ({"width": 95, "height": 65}, f"The solver was fitted at 64x48, 16x64 and runs at 80x64, {NOT_MEASURED}"),
        ({"width": 1, "height": 4, "max_area": 1024}, None),
        (
            {"width": 4, "height": 1, "max_area": 1024},
            f"The solver was fitted at 64x48, 16x64 and runs at 64x16, {NOT_MEASURED}",
        ),
    ],
)
def test_each_difference_of_a_call_is_said_in_its_words(changes: dict[str, Any], caution: str | None) -> None:
    solver = fitted(identity_of(Linear(1, 1)), sizes=("64x48", "16x64"))
    assert list(solver.cautions_about_call({**EDIT, **changes})) == ([] if caution is None else [caution])


def test_ranges_and_modes_of_a_fit_are_named() -> None:
    solver = fitted(identity_of(Linear(1, 1)), guidance=(2.5, 4.0), mode="text-to-image")
    assert list(solver.cautions_about_call({**EDIT, "guidance_scale": 6, "width": 16, "height": 16})) == [
        f"The solver was fitted at guidance 2.5 to 4 and runs at 6, {NOT_MEASURED}",
        "The solver was fitted to text-to-image and runs edits, where it comes much less near.",
    ]
