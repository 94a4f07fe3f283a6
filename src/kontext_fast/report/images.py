"""Pictures as data URIs, so that a page needs no other file."""

from __future__ import annotations

import base64
import io
from pathlib import Path

MOST_PIXELS = 512
"""Longest side of an inlined picture; larger ones are scaled down and the full ones stay in the result folder."""


def data_uri(path: Path) -> str | None:
    """The picture at `path`, pixel for pixel if it is small; None where it is missing or no picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if max(image.size) <= MOST_PIXELS:
                return _encoded("png", path.read_bytes())
            small = image.copy()
    except (OSError, UnidentifiedImageError):
        return None
    small.thumbnail((MOST_PIXELS, MOST_PIXELS))
    webp = io.BytesIO()
    small.save(webp, format="WEBP", quality=92)
    return _encoded("webp", webp.getvalue())


def chart_uri(path: Path) -> str:
    """A drawn chart, which was just written as PNG, at its full size."""
    return _encoded("png", path.read_bytes())


def _encoded(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
