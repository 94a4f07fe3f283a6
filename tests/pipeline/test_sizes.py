from __future__ import annotations

import math
import subprocess
import sys

import pytest
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from hypothesis import given
from hypothesis import strategies as st

from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.sizes import MAX_ASPECT, TRAINED_SIZES, SizePlan, parse_size, plan_size


def plan(image: tuple[int, int] | None, requested: tuple[int, int] | None = None, native: int = 1024) -> SizePlan:
    return plan_size(image, requested=requested, native=native, text_tokens=512)


def test_trained_sizes_are_those_of_diffusers() -> None:
    assert list(TRAINED_SIZES) == PREFERRED_KONTEXT_RESOLUTIONS


@pytest.mark.parametrize("size", TRAINED_SIZES)
def test_image_of_a_trained_size_is_not_resized(size: tuple[int, int]) -> None:
    planned = plan(size)
    assert planned.size == planned.reference_size == size
    assert planned.image_tokens == planned.reference_tokens == size[0] * size[1] // 256
    assert type(planned.image_tokens) is int
    assert plan(size, size) == plan(size, size)
    assert plan(size, size).reference_size == size


def test_text_to_image_has_no_reference() -> None:
    planned = plan(None)
    assert planned.size == (1024, 1024)
    assert planned.reference_size is None
    assert (planned.image_tokens, planned.reference_tokens, planned.text_tokens) == (4096, 0, 512)


def test_small_output_gets_a_small_reference() -> None:
    planned = plan((4000, 4000), (512, 512))
    assert planned.reference_size == (512, 512)
    assert planned.reference_tokens == planned.image_tokens == 1024


def test_large_output_keeps_the_reference_at_its_trained_size() -> None:
    assert plan((3000, 2000), (2048, 2048)).reference_size == (1248, 832)


def test_reference_keeps_the_aspect_of_the_image() -> None:
    assert plan((1536, 1024), (1024, 1024)).reference_size == (1248, 832)
    width, height = plan((300, 900), (512, 512)).reference_size or (0, 0)
    assert width / height == pytest.approx(1 / 3, rel=0.05)


def test_panorama_is_not_squeezed_into_a_trained_size() -> None:
    width, height = plan((3000, 1000)).size
    assert width / height == pytest.approx(3, rel=0.03)


def test_aspect_counts_twice_beside_the_area() -> None:
    assert plan((857, 1939), native=128).size == (80, 192)
    assert plan((16, 16), native=16).size == (16, 16)


@given(
    st.tuples(st.integers(16, 5000), st.integers(16, 5000)).filter(lambda size: max(size) / min(size) <= MAX_ASPECT),
    st.sampled_from([128, 256, 512, 1024]),
    st.none() | st.tuples(st.integers(1, 32), st.integers(1, 32)),
)
def test_every_plan_keeps_its_bounds(image: tuple[int, int], native: int, columns_rows: tuple[int, int] | None) -> None:
    requested = (columns_rows[0] * 16, columns_rows[1] * 16) if columns_rows else None
    planned = plan(image, requested, native)
    reference = planned.reference_size
    assert reference is not None
    if requested:
        assert planned.size == requested
    for width, height in (planned.size, reference):
        assert width % 16 == height % 16 == 0
        assert min(width, height) > 0
    assert planned.image_tokens == math.prod(planned.size) // 256
    assert planned.reference_tokens == math.prod(reference) // 256
    # Small sizes are coarse in steps of 16 pixels.
    assert planned.reference_tokens <= 1.2 * (native // 16) ** 2 + 6
    assert planned.reference_tokens <= 1.2 * planned.image_tokens + 6
    assert planned.explanation.endswith(".")
    assert "\n" not in planned.explanation


@given(st.floats(0.26, 3.9), st.sampled_from([512, 1024, 2048]))
def test_aspects_are_nearly_kept(aspect: float, native: int) -> None:
    image = (round(4000 * math.sqrt(aspect)), round(4000 / math.sqrt(aspect)))
    width, height = plan(image, native=native).size
    stretch = (width / height) / aspect
    assert max(stretch, 1 / stretch) < 1.1
    assert math.prod((width, height)) == pytest.approx(native**2, rel=0.12)


@pytest.mark.parametrize(
    ("image", "requested", "words"),
    [
        (None, (1000, 1024), "992x1024 or 1008x1024"),
        (None, (7, 16), "16x16"),
        (None, (-16, 128), "not positive"),
        (None, (0, 128), "not positive"),
        (None, (8192, 8192), "at most 4096x4096"),
        ((1, 1), None, "too small"),
        ((4000, 10), None, "too small"),
        ((4000, 100), None, "too elongated"),
    ],
)
def test_impossible_size_is_refused_in_one_sentence(
    image: tuple[int, int] | None, requested: tuple[int, int] | None, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        plan(image, requested)
    assert "\n" not in str(caught.value)


def refusal(image: tuple[int, int] | None, requested: tuple[int, int] | None = None, native: int = 1024) -> str:
    with pytest.raises(InvalidInput) as caught:
        plan(image, requested, native)
    return str(caught.value)


def test_refused_sizes_name_the_nearest_that_run() -> None:
    assert refusal(None, (1000, 1030)) == ("Size 1000x1030 is not a multiple of 16; ask for 992x1024 or 1008x1040.")
    assert refusal(None, (1, 16)) == "Size 1x16 is not a multiple of 16; ask for 16x16."
    assert refusal(None, (16, 1)) == "Size 16x1 is not a multiple of 16; ask for 16x16."
    assert refusal(None, (16, 7)) == "Size 16x7 is not a multiple of 16; ask for 16x16."
    assert refusal(None, (128, 0)) == "Size 128x0 is not positive; ask for at least 16x16."
    assert refusal(None, (528, 512), 128) == (
        "Size 528x512 is more than 4 times the 128x128 that this checkpoint is made for; ask for at most 512x512."
    )
    assert refusal((15, 16)) == (
        "The input image has 15x16 pixels, which is too small to edit; give one of at least 16x16."
    )
    for tall in ((161, 40), (40, 161)):
        assert refusal(tall) == (
            f"The input image has {tall[0]}x{tall[1]} pixels, which is too elongated to edit; crop it to 4:1 or less."
        )
    # The limits themselves run.
    assert plan((16, 64), (512, 512), 128).size == (512, 512)
    assert plan((160, 40), native=128).size == plan((64, 16), native=128).size == (256, 64)


@pytest.mark.parametrize(
    ("image", "requested", "native", "words"),
    [
        (None, None, 1024, "The output is 1024x1024 pixels, the native size of this checkpoint."),
        (None, (512, 256), 1024, "The output is 512x256 pixels, as requested."),
        ((1024, 1024), (1008, 1024), 1024, "1008x1024 pixels, as requested; the input is read at its own size."),
        ((1024, 1024), (1024, 992), 1024, "as requested; the input of 1024x1024 is read at 1008x1008."),
        ((300, 900), (512, 512), 1024, "as requested; the input of 300x900 is read at 288x864."),
        ((2000, 1000), None, 512, "checkpoint in the aspect of the input; the input of 2000x1000 is read at 736x368."),
        (
            (3000, 1000),
            None,
            1024,
            "The output is 1776x592 pixels, the native size of this checkpoint in the aspect of",
        ),
        ((1090, 1010), None, 1024, "; the input of 1090x1010 is read at 1024x1024, stretched by 8 %."),
    ],
)
def test_explanation_says_which_sizes_run(
    image: tuple[int, int] | None, requested: tuple[int, int] | None, native: int, words: str
) -> None:
    assert words in plan(image, requested, native).explanation


def test_visible_stretch_is_reported() -> None:
    assert "stretched" in plan((1090, 1010)).explanation
    assert "stretched" not in plan((1200, 800)).explanation
    assert "stretched by 5 %" in plan((1171, 1110), native=128).explanation


def test_sizes_are_read_as_width_by_height() -> None:
    assert parse_size("1024x768") == parse_size("1024X768") == (1024, 768)
    with pytest.raises(InvalidInput) as caught:
        parse_size("big")
    assert str(caught.value) == "Size 'big' is not WIDTHxHEIGHT; write for example 1024x768."
    for wrong in ("1024", "x", "1024x", "axb", "1024x768x3", ""):
        with pytest.raises(InvalidInput, match="WIDTHxHEIGHT"):
            parse_size(wrong)


def test_planning_imports_no_torch() -> None:
    code = "import sys, kontext_fast.pipeline.sizes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
