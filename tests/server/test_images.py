"""Decoding what strangers send, in the process that the server uses for it."""

from __future__ import annotations

import asyncio

import pytest
from PIL import Image

from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.images import to_rgb
from kontext_fast.server.images import Canvas, DecodedImage, ImageDecoder, encode
from tests.pipelines import picture
from tests.server.hostile_images import readable_images, refused_images
from tests.server.processes import encoded, png

CANVAS = Canvas(None, 128, 32)


def decode_all(contents: list[bytes], canvas: Canvas = CANVAS) -> list[DecodedImage | str]:
    """Per content its image, or the words by which it is refused; in one process."""

    async def test() -> list[DecodedImage | str]:
        decoder = ImageDecoder(32, processes=1)
        return [await _decoded(decoder, content, canvas) for content in contents]

    return asyncio.run(test())


async def _decoded(decoder: ImageDecoder, content: bytes, canvas: Canvas) -> DecodedImage | str:
    try:
        return await decoder.decode(content, canvas)
    except InvalidInput as error:
        return str(error)


def test_hostile_images_are_refused_in_words() -> None:
    cases = refused_images()
    outcomes = decode_all([content for content, _ in cases.values()])
    for (name, (_, word)), outcome in zip(cases.items(), outcomes, strict=True):
        assert isinstance(outcome, str), name
        assert word in outcome, name


def test_unusual_images_are_read_as_the_library_reads_them() -> None:
    from io import BytesIO

    contents = list(readable_images().values())
    for content, outcome in zip(contents, decode_all(contents), strict=True):
        assert isinstance(outcome, DecodedImage)
        with Image.open(BytesIO(content)) as image:
            expected = to_rgb(image)
        assert outcome.plan == CANVAS.plan(expected.size)
        size = outcome.plan.reference_size
        assert size is not None
        resized = expected if expected.size == size else expected.resize(size, Image.Resampling.LANCZOS)
        assert outcome.picture().tobytes() == resized.tobytes()


def test_one_pixel_is_read_or_refused_in_words() -> None:
    (outcome,) = decode_all([png(Image.new("RGB", (1, 1)))])
    assert isinstance(outcome, DecodedImage) or outcome.endswith(".")


def test_rotation_of_a_camera_is_applied_and_stripped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (outcome,) = decode_all([encoded(Image.new("RGB", (256, 128)), "JPEG", exif=exif)])
    assert isinstance(outcome, DecodedImage)
    assert outcome.plan.height > outcome.plan.width


def test_decoder_survives_a_file_that_needs_too_much_memory() -> None:
    bad, good = refused_images()["huge comment"][0], png()
    refused, read = decode_all([bad, good])
    assert isinstance(refused, str)
    assert isinstance(read, DecodedImage)


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_encoded_picture_holds_no_metadata(form: str) -> None:
    from io import BytesIO

    source = picture()
    source.info["comment"] = "secret"
    content = encode(source, form)  # type: ignore[arg-type]
    assert b"secret" not in content
    with Image.open(BytesIO(content)) as image:
        assert (image.format, image.size) == (form.upper(), source.size)


def test_png_keeps_every_pixel() -> None:
    from io import BytesIO

    with Image.open(BytesIO(encode(picture(), "png"))) as image:
        assert image.tobytes() == picture().tobytes()
