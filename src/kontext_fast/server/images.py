"""Images from strangers, decoded in a process of their own with limits; and pictures encoded for the answer.

Only PNG, JPEG and WebP of one frame. Size and format are read from the header before anything is decoded. What comes
back are pixels: orientation, profile and transparency are applied as the library does, everything else in the file
(positions, comments, what hangs behind the image) is gone.
"""

from __future__ import annotations

import asyncio
import resource
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Literal

import anyio.to_process

from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.sizes import Size, SizePlan, plan_size

if TYPE_CHECKING:
    from PIL.Image import Image

Format = Literal["png", "jpeg", "webp"]

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

_READ_FORMATS = ("PNG", "JPEG", "WEBP")
_LONGEST_SIDE = 8192
_DECODE_S = 15.0
_MEMORY_BYTES = 3 * 2**30
"""Of the decoding process: twice what 32 megapixels of 16 bits take."""
_PNG_LEVEL = 1
"""Of zlib: on a photo about half the time of the default, for a file that is a tenth larger."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HIGHEST_QUALITY = 100
_DAMAGED = "The image is damaged or cut off; send an intact copy."


@dataclass(frozen=True)
class Canvas:
    """What sizes are planned with; see `sizes.plan_size`."""

    requested: Size | None
    native: int
    text_tokens: int

    def plan(self, image_size: Size | None) -> SizePlan:
        return plan_size(image_size, requested=self.requested, native=self.native, text_tokens=self.text_tokens)


@dataclass(frozen=True)
class DecodedImage:
    """An upright RGB image and the sizes that an edit of it will run."""

    size: Size
    pixels: bytes
    plan: SizePlan

    def picture(self) -> Image:
        from PIL import Image

        return Image.frombytes("RGB", self.size, self.pixels)


class ImageDecoder:
    """Decodes in processes that are ended when they take too long."""

    def __init__(self, max_megapixels: float, processes: int = 2) -> None:
        self._most_pixels = int(max_megapixels * 1e6)
        self._processes = processes
        self._limiter: anyio.CapacityLimiter | None = None

    async def decode(self, content: bytes, canvas: Canvas) -> DecodedImage:
        """Raises InvalidInput for what cannot be edited."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._processes)
        try:
            async with asyncio.timeout(_DECODE_S):
                return await anyio.to_process.run_sync(
                    decode_here, content, canvas, self._most_pixels, cancellable=True, limiter=self._limiter
                )
        except TimeoutError:
            raise InvalidInput("The image takes too long to decode; save it again as a plain PNG.") from None
        except anyio.BrokenWorkerProcess:
            raise InvalidInput("The image cannot be decoded; save it again as a plain PNG.") from None

    async def warm_up(self) -> None:
        """Start one process, so that the first request does not wait for it."""
        picture = BytesIO()
        from PIL import Image

        Image.new("RGB", (64, 64)).save(picture, "PNG")
        await self.decode(picture.getvalue(), Canvas(None, 64, 1))


def decode_here(content: bytes, canvas: Canvas, most_pixels: int) -> DecodedImage:
    """Decode in this process. Raises InvalidInput for what cannot be edited."""
    from PIL import Image, UnidentifiedImageError

    from kontext_fast.pipeline.images import BROKEN, to_rgb

    # Both limits are our own.
    Image.MAX_IMAGE_PIXELS = None
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(BytesIO(content), formats=_READ_FORMATS)
            _check_header(image, content, most_pixels)
            rgb = to_rgb(image)
    except UnidentifiedImageError:
        raise InvalidInput("The image is no PNG, JPEG or WebP; convert it to one of these.") from None
    except MemoryError:
        raise InvalidInput("The image takes too much memory to decode; scale it down.") from None
    except BROKEN as error:
        raise InvalidInput(_DAMAGED) from error
    plan = canvas.plan(rgb.size)
    rgb = _as_read(rgb, plan, canvas)
    return DecodedImage(rgb.size, rgb.tobytes(), plan)


def _as_read(image: Image, plan: SizePlan, canvas: Canvas) -> Image:
    """The image at the size at which the edit reads it, where an edit of that would be the same.

    Resizing here spares the worker the time, and the pipes the bytes.
    """
    from PIL.Image import Resampling

    size = plan.reference_size
    if size is None or image.size == size:
        return image
    again = canvas.plan(size)
    if (again.size, again.reference_size) != (plan.size, size):
        return image
    return image.resize(size, Resampling.LANCZOS)


def _check_header(image: Image, content: bytes, most_pixels: int) -> None:
    """Raises InvalidInput; nothing has been decoded yet."""
    width, height = image.size
    if width * height > most_pixels or max(width, height) > _LONGEST_SIDE:
        raise InvalidInput(
            f"The image has {width}x{height} pixels; send one of at most {most_pixels / 1e6:g} megapixels and "
            f"{_LONGEST_SIDE} pixels a side."
        )
    # A JPEG with several pictures is what cameras write, whose first picture is the photo.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise InvalidInput("The image is animated; send a single frame.")
    if image.format in ("PNG", "WEBP"):
        end = _end_of(content)
        if end is None:
            raise InvalidInput(_DAMAGED)
        if end != len(content):
            raise InvalidInput("The image file has something behind the image; save it again as a plain PNG.")


def _end_of(content: bytes) -> int | None:
    """Where the PNG or WebP file ends by its own account; None where it is cut off."""
    if not content.startswith(_PNG_SIGNATURE):
        length = int.from_bytes(content[4:8], "little") + 8
        return length + length % 2 if length <= len(content) else None
    at = len(_PNG_SIGNATURE)
    while at + 12 <= len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        at += 12 + length
        if kind == b"IEND":
            return at if at <= len(content) else None
    return None


def encode(picture: Image, form: Format, compression: int | None = None) -> bytes:
    """The file of a picture, without metadata. `compression` is the quality of JPEG and WebP, 0 to 100, 100 if None."""
    content = BytesIO()
    # Encoders write some of what `info` holds.
    picture = picture.copy()
    picture.info.clear()
    if form == "png":
        picture.save(content, "PNG", compress_level=_PNG_LEVEL)
    else:
        picture.save(content, form.upper(), quality=_HIGHEST_QUALITY if compression is None else compression)
    return content.getvalue()
