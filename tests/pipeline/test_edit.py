from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kontext_fast.errors import Cancelled, InvalidInput, OutOfMemory, Refused
from kontext_fast.pipeline.edit import STEP_KINDS, EditRequest, edit, edit_together, text_length

INSTRUCTION = "make the red circle blue"


def request(image: Any, **changes: Any) -> EditRequest:
    return EditRequest(**{"instruction": INSTRUCTION, "image": image, "steps": 2, "seed": 3, **changes})


def pixels(pipe: Any, edit_request: EditRequest, **hooks: Any) -> list[bytes]:
    return [image.tobytes() for image in edit(pipe, edit_request, **hooks).images]


def test_edit_equals_the_stock_pipeline_at_equal_sizes(tiny: Any, picture: Image.Image) -> None:
    stock = tiny(
        image=picture,
        prompt=INSTRUCTION,
        height=128,
        width=128,
        max_area=128 * 128,
        _auto_resize=False,
        num_inference_steps=2,
        guidance_scale=2.5,
        max_sequence_length=48,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    result = edit(tiny, request(picture))
    assert result.images[0].tobytes() == stock.tobytes()
    assert result.seeds == (3,)
    assert result.size.size == (128, 128)
    assert result.step_kinds == ("full", "full")


def test_image_depends_on_the_seed_alone(tiny: Any, picture: Image.Image) -> None:
    first = pixels(tiny, request(picture))
    assert pixels(tiny, request(picture)) == first
    assert pixels(tiny, request(picture, seed=4)) != first


def test_each_image_of_a_batch_has_its_own_seed(tiny: Any, picture: Image.Image) -> None:
    both = edit(tiny, request(picture, batch=2))
    assert both.seeds == (3, 4)
    alone = [np.asarray(edit(tiny, request(picture, seed=seed)).images[0]).astype(int) for seed in both.seeds]
    for image, expected in zip(both.images, alone, strict=True):
        # Matrices of another shape round differently.
        assert np.abs(np.asarray(image) - expected).max() <= 2
    assert np.abs(alone[0] - alone[1]).max() > 20


def test_seed_is_drawn_and_reported(tiny: Any, picture: Image.Image) -> None:
    drawn = edit(tiny, request(picture, seed=None))
    again = edit(tiny, request(picture, seed=drawn.seeds[0]))
    assert again.images[0].tobytes() == drawn.images[0].tobytes()
    assert edit(tiny, request(picture, seed=None, steps=1)).seeds != drawn.seeds


def test_text_to_image_carries_no_reference(tiny: Any) -> None:
    result = edit(tiny, request(None))
    assert result.size.reference_tokens == 0
    assert result.images[0].size == (128, 128)


def test_negative_prompt_and_its_scale_change_the_image(tiny: Any, picture: Image.Image) -> None:
    plain = pixels(tiny, request(picture))
    guided = pixels(tiny, request(picture, negative="blurry", true_cfg=4.0))
    assert guided != plain
    assert pixels(tiny, request(picture, negative="a star", true_cfg=4.0)) != guided


def test_guidance_changes_the_image(tiny: Any, picture: Image.Image) -> None:
    assert pixels(tiny, request(picture, guidance=0.0)) != pixels(tiny, request(picture, guidance=6.0))


def test_progress_is_reported_and_user_settings_restored(tiny: Any, picture: Image.Image) -> None:
    seen: list[tuple[int, int]] = []
    tiny.set_progress_bar_config(desc="mine", disable=False)
    try:
        edit(tiny, request(picture, steps=3), on_step=lambda done, total: seen.append((done, total)))
        assert tiny._progress_bar_config == {"desc": "mine", "disable": False}
    finally:
        del tiny._progress_bar_config
    assert seen == [(1, 3), (2, 3), (3, 3)]
    edit(tiny, request(picture))
    assert not hasattr(tiny, "_progress_bar_config")


def test_edit_is_silent(tiny: Any, picture: Image.Image, capfd: pytest.CaptureFixture[str]) -> None:
    edit(tiny, request(picture))
    assert capfd.readouterr() == ("", "")


def test_stop_takes_one_step_and_leaves_pipeline_usable(tiny: Any, picture: Image.Image) -> None:
    fresh = pixels(tiny, request(picture))
    done: list[int] = []
    with pytest.raises(Cancelled, match="2 of 4 steps"):
        edit(
            tiny,
            request(picture, steps=4),
            on_step=lambda step, _: done.append(step),
            should_stop=lambda: len(done) == 2,
        )
    assert done == [1, 2]
    assert pixels(tiny, request(picture)) == fresh


def test_stop_before_the_first_step_runs_nothing(tiny: Any, picture: Image.Image) -> None:
    done: list[int] = []
    with pytest.raises(Cancelled, match="0 of 2 steps"):
        edit(tiny, request(picture), on_step=lambda step, _: done.append(step), should_stop=lambda: True)
    assert not done


def test_exception_in_mid_edit_leaves_pipeline_usable(tiny: Any, picture: Image.Image) -> None:
    fresh = pixels(tiny, request(picture))

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit(tiny, request(picture), on_step=interrupt)
    assert not hasattr(tiny, "_progress_bar_config")
    assert pixels(tiny, request(picture)) == fresh


def test_early_end_frees_the_hooks_of_the_pipeline(tiny: Any, picture: Image.Image) -> None:
    freed: list[bool] = []
    tiny.maybe_free_model_hooks = lambda: freed.append(True)
    try:
        with pytest.raises(Cancelled):
            edit(tiny, request(picture), on_step=lambda *_: freed.clear(), should_stop=lambda: bool(freed) or not freed)
        with pytest.raises(ZeroDivisionError):
            edit(tiny, request(picture), on_step=lambda *_: 1 // 0)  # type: ignore[func-returns-value]
    finally:
        del tiny.maybe_free_model_hooks
    assert freed == [True]


def test_failed_allocation_raises_out_of_memory(tiny: Any, picture: Image.Image) -> None:
    hook = tiny.transformer.register_forward_pre_hook(lambda *_: torch.empty(2**50))
    try:
        with pytest.raises(OutOfMemory, match="128x128"):
            edit(tiny, request(picture))
    finally:
        hook.remove()


def test_other_errors_are_not_out_of_memory(tiny: Any, picture: Image.Image) -> None:
    hook = tiny.transformer.register_forward_pre_hook(lambda *_: torch.zeros(2) @ torch.zeros(3))
    try:
        with pytest.raises(RuntimeError, match="size"):
            edit(tiny, request(picture))
    finally:
        hook.remove()


def test_step_kinds_are_read_from_the_pipeline(
    tiny: Any, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, STEP_KINDS, (("full",), ("skipped",)), raising=False)
    assert edit(tiny, request(picture)).step_kinds == ("full", "skipped")
    monkeypatch.setattr(tiny, STEP_KINDS, (("skipped", "full"), ("skipped", "skipped")))
    first, second = edit_together(tiny, [request(picture), request(picture)])
    assert (first.step_kinds, second.step_kinds) == (("skipped", "skipped"), ("full", "skipped"))
    monkeypatch.setattr(tiny, STEP_KINDS, (("full",),))
    with pytest.raises(RuntimeError, match="2 steps"):
        edit(tiny, request(picture))


def test_text_that_would_be_truncated_is_refused(tiny: Any, picture: Image.Image) -> None:
    limit = text_length(tiny)
    assert limit == 48
    long = "red " * 200
    with pytest.raises(InvalidInput, match=f"instruction has .* reads {limit}"):
        edit(tiny, request(picture, instruction=long))
    with pytest.raises(InvalidInput, match="negative prompt has"):
        edit(tiny, request(picture, negative=long, true_cfg=2.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"instruction": ""}, "instruction is empty"),
        ({"instruction": " \n"}, "instruction is empty"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": 1001}, "1 to 1000"),
        ({"guidance": -1.0}, "guidance"),
        ({"guidance": math.nan}, "guidance"),
        ({"guidance": math.inf}, "guidance"),
        ({"guidance": None}, "guidance"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is"),
        ({"seed": 2**63 - 1, "batch": 2}, "seed is"),
        ({"batch": 0}, "batch is 0"),
        ({"true_cfg": 2.0}, "needs a negative prompt"),
        ({"negative": "blurry"}, "needs a true CFG scale"),
        ({"negative": "blurry", "true_cfg": 0.5}, "at least 1"),
        ({"size": (100, 128)}, "multiple of 16"),
        ({"size": (-16, 128)}, "not positive"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_request_cannot_be_created(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        request(None, **changes)
    assert "\n" not in str(caught.value)


def test_highest_seeds_are_valid() -> None:
    assert request(None, seed=2**63 - 2, batch=2).seeds() == (2**63 - 2, 2**63 - 1)


def test_short_call_equals_the_request_it_stands_for(tiny: Any, picture: Image.Image) -> None:
    short = edit(tiny, picture, INSTRUCTION, steps=2, seed=3)
    assert short.image.tobytes() == edit(tiny, request(picture)).images[0].tobytes()
    assert edit(tiny, None, INSTRUCTION, steps=1, seed=3).size.reference_tokens == 0


BAD_CALLS: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "no instruction": ("photo.jpg", None, {}, "instruction is missing"),
    "image second": ("make it red", Image.new("RGB", (16, 16)), {}, "image comes first"),
    "name of diffusers": ("photo.jpg", "x", {"guidance_scale": 3}, "guidance_scale is called guidance here"),
    "unknown option": ("photo.jpg", "x", {"sed": 3}, "no option 'sed'; did you mean seed"),
    "request and more": (EditRequest("x"), "y", {}, "holds instruction and options"),
    "request and options": (EditRequest("x"), None, {"seed": 3}, "holds instruction and options"),
}


@pytest.mark.parametrize(("image", "instruction", "options", "words"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_call_says_how_to_write_it(
    tiny: Any, image: Any, instruction: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        edit(tiny, image, instruction, **options)


def test_result_tells_time_size_and_seed(tiny: Any, picture: Image.Image) -> None:
    result = edit(tiny, picture, INSTRUCTION, steps=2, seed=3)
    assert 0 < result.seconds < 60
    assert result.computed_steps == 2
    assert repr(result) == f"EditResult(128x128, {result.seconds:.2f} s, 2 of 2 steps computed, seed 3)"
    shown = result._repr_html_()
    assert repr(result) in shown
    assert shown.count("data:image/png;base64,") == 1


@pytest.mark.parametrize(
    "name", ["transformer.x_embedder.weight", "text_encoder_2.shared.weight", "vae.decoder.conv_out.bias"]
)
def test_weights_that_are_not_finite_are_refused_by_name(tiny: Any, picture: Image.Image, name: str) -> None:
    component, _, weight = name.partition(".")
    values = getattr(tiny, component).get_parameter(weight).data
    before = values.clone()
    try:
        values.fill_(float("nan"))
        with pytest.raises(InvalidInput, match=f"The weights {weight} of {component} are not finite"):
            edit(tiny, request(picture, steps=1))
    finally:
        values.copy_(before)


def test_latents_that_overflow_are_refused(tiny: Any, picture: Image.Image) -> None:
    layer = tiny.transformer.proj_out
    hook = layer.register_forward_hook(lambda _module, _inputs, output: output * float("inf"))
    try:
        with pytest.raises(Refused, match="latents are not finite, though all weights are"):
            edit(tiny, request(picture, steps=1))
    finally:
        hook.remove()
