"""Stored images as they stand in a page: data URIs, so that the page is one file."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL import Image

MOST_PIXELS = 512
"""Longest side of an inlined picture; larger ones are scaled down and the full ones stay in the result folder."""


class ImageFolder(Protocol):
    """Where images are stored: a result folder, or several."""

    def image_path(self, digest: str) -> Path:
        """Where the image with this hash is, whether or not it exists."""


def stored_image_uri(path: Path) -> str | None:
    """The picture at `path`, pixel for pixel if it is small; None where it is missing or no picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if max(image.size) <= MOST_PIXELS:
                return png_uri(path.read_bytes())
            small = image.copy()
    except (OSError, UnidentifiedImageError):
        return None
    return _encoded(small, "WEBP", quality=92)


def png_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def image_uri(image: Image.Image) -> str:
    """As PNG, scaled down where it is large."""
    return _encoded(image, "PNG")


def _encoded(image: Image.Image, format: str, **options: int) -> str:
    image.thumbnail((MOST_PIXELS, MOST_PIXELS))
    content = io.BytesIO()
    image.save(content, format=format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
