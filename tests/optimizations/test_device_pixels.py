"""Pixels scaled on the device: the bits of diffusers for every pixel value, and everything unusual as before."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch.overrides import TorchFunctionMode

from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.call_tracking import tracker_of
from kontext_fast.optimizations.techniques import device_pixels
from kontext_fast.optimizations.techniques.device_pixels import DevicePixels, _device, _PixelProcessor, _pixels, _Table
from tests.pipelines import SIDE, picture, small_pipeline


@pytest.fixture
def pipe() -> Any:
    return small_pipeline()


def noise(seed: int = 0, size: tuple[int, int] = (SIDE, SIDE), mode: str = "RGB") -> Image.Image:
    """A picture with every pixel value."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def run(pipe: Any, image: Any = None, **options: Any) -> Any:
    count = len(image) if isinstance(image, list) else 1
    return pipe(
        image=image,
        prompt=["make the background red"] * count,
        height=SIDE,
        width=SIDE,
        max_area=SIDE * SIDE,
        _auto_resize=False,
        num_inference_steps=1,
        generator=[torch.Generator().manual_seed(seed) for seed in range(count)],
        max_sequence_length=48,
        **options,
    ).images


def encoded(pipe: Any, image: Any) -> torch.Tensor:
    """What the VAE reads in a call."""
    seen: list[torch.Tensor] = []
    encode = pipe.vae.encode
    pipe.vae.encode = lambda x: seen.append(x) or encode(x)
    try:
        run(pipe, image, output_type="latent")
    finally:
        del pipe.vae.encode
    return torch.cat(seen)


@pytest.mark.parametrize(
    "image",
    [noise(), noise(1, (100, 70)), [noise(2), noise(3)], Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8))],
    ids=["noise", "resized", "batch", "black"],
)
def test_vae_reads_the_same_bits_in_the_same_layout(pipe: Any, image: Any) -> None:
    expected = encoded(pipe, image)
    with accelerate(pipe, [DevicePixels()], quiet=True) as acceleration:
        actual = encoded(pipe, image)
        assert acceleration.facts["device_pixels"]["read"] == (len(image) if isinstance(image, list) else 1)
    assert actual.dtype == expected.dtype
    assert actual.stride() == expected.stride()
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_have_the_same_pixels(pipe: Any, dtype: torch.dtype) -> None:
    decoded = (torch.randn(2, 3, 129, 65, generator=torch.Generator().manual_seed(0)) * 0.8).to(dtype)
    decoded[0, 0, 0] = (torch.arange(65) + 0.5) * 2 / 255 - 1  # halves, which round to even
    pipe.vae.decode = lambda *_, **__: (decoded,)
    expected = run(pipe, noise())
    with accelerate(pipe, [DevicePixels()], quiet=True) as acceleration:
        actual = run(pipe, noise())
        assert acceleration.facts["device_pixels"] == {"read": 1, "written": 2, "as_before": 0}
    assert [image.mode for image in actual] == ["RGB", "RGB"]
    for image, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(other))


@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_other_pictures_and_outputs_are_converted_as_before(pipe: Any, mode: str) -> None:
    processor = pipe.image_processor
    with accelerate(pipe, [DevicePixels()], quiet=True) as acceleration:
        pixels = np.asarray(noise(4), dtype=np.float32)[None] / 255
        arrays = run(pipe, pixels, output_type="np")
        assert acceleration.facts["device_pixels"] == {"read": 0, "written": 0, "as_before": 2}
        assert pipe.image_processor is processor
        with pytest.raises((RuntimeError, ValueError)):  # the VAE has three channels, with and without
            run(pipe, noise(4, mode=mode))
    np.testing.assert_array_equal(run(pipe, pixels, output_type="np"), arrays)


def test_not_a_number_warns_as_before(pipe: Any) -> None:
    decoded = torch.full((1, 3, 8, 8), float("nan"))
    pipe.vae.decode = lambda *_, **__: (decoded,)
    with accelerate(pipe, [DevicePixels()], quiet=True), pytest.warns(RuntimeWarning, match="invalid value"):
        run(pipe, noise())


def test_processor_of_the_user_is_called(pipe: Any) -> None:
    class Inverting(VaeImageProcessor):
        def preprocess(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return -super().preprocess(*args, **kwargs)

    plain = encoded(pipe, picture())
    with accelerate(pipe, [DevicePixels()], quiet=True):
        pipe.image_processor = Inverting(vae_scale_factor=16)
        assert torch.equal(encoded(pipe, picture()), -plain)
    assert isinstance(pipe.image_processor, Inverting)


def test_copies_in_threads_read_their_own_pictures(pipe: Any) -> None:
    seeds = range(4)
    expected = [np.asarray(run(pipe, noise(seed))[0]) for seed in seeds]
    with accelerate(pipe, [DevicePixels()], quiet=True):
        copies = [copy.copy(pipe) for _ in seeds]
        for own in copies:
            own.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        with ThreadPoolExecutor(len(copies)) as threads:
            images = list(threads.map(lambda seed: np.asarray(run(copies[seed], noise(seed))[0]), seeds))
    np.testing.assert_array_equal(images, expected)


def processors(reads: bool = True, **config: Any) -> tuple[_PixelProcessor, VaeImageProcessor, dict[str, Any]]:
    """One on the CPU, the one of diffusers inside of it, and its facts."""
    original = VaeImageProcessor(**{"vae_scale_factor": 16, **config})
    facts = {"read": 0, "written": 0, "as_before": 0}
    table = _Table()
    return _PixelProcessor(original, lambda: table.on(torch.device("cpu")), facts, reads=reads), original, facts


UNUSUAL: list[dict[str, Any]] = [
    {"do_resize": False},
    {"do_normalize": False},
    {"do_binarize": True},
    {"do_convert_grayscale": True},
]


@pytest.mark.parametrize("config", [{}, *UNUSUAL], ids=lambda config: next(iter(config), "usual"))
def test_options_that_flux_does_not_have_are_left_to_diffusers(config: dict[str, Any]) -> None:
    processor, original, facts = processors(**config)
    pictures, decoded = [noise(1), noise(2)], torch.rand(2, 3, 8, 8) * 2 - 1
    size = (SIDE, SIDE) if config.get("do_resize") is False else (SIDE // 2, 2 * SIDE)
    for _ in range(2):
        assert torch.equal(processor.preprocess(pictures, *size), original.preprocess(pictures, *size))
        for image, other in zip(processor.postprocess(decoded), original.postprocess(decoded), strict=True):
            np.testing.assert_array_equal(np.asarray(image), np.asarray(other))
    crossed = 0 if config else 4
    assert facts == {"read": crossed, "written": crossed, "as_before": 0 if crossed else 4}


def test_pictures_that_do_not_cross_as_pixels_are_read_by_diffusers() -> None:
    gray, array = noise(3, mode="L"), np.full((1, 8, 8, 3), 0.25, np.float32)
    crop, size = {"resize_mode": "crop"}, (SIDE, 2 * SIDE)
    for image, options, reads in ((gray, {}, True), (array, {}, True), (noise(), crop, True), (noise(), {}, False)):
        processor, original, facts = processors(reads)
        assert torch.equal(processor.preprocess(image, *size, **options), original.preprocess(image, *size, **options))
        assert facts == {"read": 0, "written": 0, "as_before": 1}


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 3, 8, 8), {"output_type": "np"}),
        ((1, 3, 8, 8), {"output_type": "pt"}),
        ((2, 3, 8, 8), {"do_denormalize": [True, False]}),
        ((1, 4, 8, 8), {}),
    ],
)
def test_other_outputs_are_those_of_diffusers(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    processor, original, facts = processors()
    decoded = torch.rand(shape) * 2 - 1
    for image, other in zip(
        processor.postprocess(decoded, **options), original.postprocess(decoded, **options), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(other))
    assert facts == {"read": 0, "written": 0, "as_before": 1}


@pytest.mark.parametrize("name", ["preprocess", "postprocess", "denormalize"])
def test_method_that_somebody_replaced_is_left_to_run(name: str) -> None:
    processor, original, facts = processors()
    setattr(original, name, lambda image, *_: image * 0 + 1 if name == "denormalize" else "somebody's")
    processed = processor.postprocess(torch.rand(1, 3, 8, 8))
    if name == "denormalize":
        # diffusers gives its own mean of one image the same.
        np.testing.assert_array_equal(np.asarray(processed[0]), np.full((8, 8, 3), 255))
    elif name == "postprocess":
        assert processed == "somebody's"
    else:
        assert processor.preprocess(noise()) == "somebody's"
    assert facts["written"] == facts["read"] == 0


def test_everything_else_of_a_processor_is_that_of_diffusers() -> None:
    processor, original, _ = processors()
    assert processor.config is original.config
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = processor.nothing_like_it


def test_images_are_brought_to_where_the_vae_is() -> None:
    def runs_on(vae: Any) -> Any:
        return _device(SimpleNamespace(vae=vae, _execution_device="the pipeline's"))

    assert runs_on(torch.nn.Linear(1, 1)) == torch.device("cpu")
    # Weights that a hook brings later, and none at all.
    for vae in (torch.nn.Linear(1, 1, device="meta"), torch.nn.Identity(), None):
        assert runs_on(vae) == "the pipeline's"


def test_pipeline_with_masks_reads_pictures_as_before(pipe: Any) -> None:
    pipe.mask_processor = pipe.image_processor
    expected = encoded(pipe, picture())
    with accelerate(pipe, [DevicePixels()], quiet=True) as acceleration:
        assert torch.equal(encoded(pipe, picture()), expected)
        assert acceleration.facts["device_pixels"]["read"] == 0


class Moves(TorchFunctionMode):
    """Notes what is moved to another device: type of the numbers, target, and whether the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[torch.dtype, torch.device, bool]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.to:
            self.noted.append((args[0].dtype, args[1], not (kwargs or {}).get("non_blocking")))
        return func(*args, **(kwargs or {}))


def test_pictures_cross_to_the_device_as_bytes_and_nothing_waits(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = torch.device("meta")
    monkeypatch.setattr(device_pixels, "_device", lambda _: meta)
    with accelerate(pipe, [DevicePixels()], quiet=True):
        calls = tracker_of(pipe)
        assert calls is not None
        with calls.open(pipe), Moves() as moves:
            results = [pipe.image_processor.preprocess(noise(size=(100, 70)), 64, 32) for _ in range(2)]
    assert all(result.device == meta and result.shape == (1, 3, 64, 32) for result in results)
    assert _pixels(torch.zeros(1, 3, 2, 4, device=meta)).device == meta
    table, picture = (torch.float32, meta, True), (torch.uint8, meta, False)
    assert sorted(moves.noted, key=str) == [table, picture, picture]  # the table is there from then on


def test_pixels_cross_in_calls_of_pipelines_without_masks(pipe: Any) -> None:
    original = pipe.image_processor
    expected = original.preprocess(noise())
    with accelerate(pipe, [DevicePixels()], quiet=True) as acceleration:
        calls, facts = tracker_of(pipe), acceleration.facts["device_pixels"]
        assert calls is not None
        with calls.open(pipe):
            assert torch.equal(pipe.image_processor.preprocess(noise()), expected)
            assert facts == {"read": 1, "written": 0, "as_before": 0}
            pipe.mask_processor = original
            assert torch.equal(pipe.image_processor.preprocess(noise()), expected)
            assert facts == {"read": 1, "written": 0, "as_before": 1}
        assert pipe.image_processor is original
        pipe.image_processor = other = VaeImageProcessor(vae_scale_factor=16)
        assert pipe.image_processor is other
