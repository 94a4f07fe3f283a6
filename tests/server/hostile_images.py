"""Image files that strangers send: those that are refused, and those that have to be read."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

from tests.pipelines import picture
from tests.server.processes import encoded, png


def bomb(side: int = 12_000) -> bytes:
    """A PNG of a few kilobytes for `side` squared pixels of one colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def animated(form: str) -> bytes:
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    content = BytesIO()
    frames[0].save(content, form, save_all=True, append_images=frames[1:])
    return content.getvalue()


def huge_text() -> bytes:
    """A PNG whose compressed comment unfolds to 40 MB."""
    from PIL.PngImagePlugin import PngInfo

    comments = PngInfo()
    comments.add_text("comment", "a" * 40_000_000, zip=True)
    return png(pnginfo=comments)


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def refused_images() -> dict[str, tuple[bytes, str]]:
    """Content, and a word of the answer."""
    photo = png()
    return {
        "bomb": (bomb(), "megapixels"),
        "long side": (png(Image.new("1", (9000, 16))), "pixels a side"),
        "truncated png": (truncated(photo), "cut off"),
        "truncated jpeg": (truncated(encoded(picture(), "JPEG")), "damaged"),
        "truncated webp": (truncated(encoded(picture(), "WEBP")), "cut off"),
        "animated png": (animated("PNG"), "animated"),
        "animated webp": (animated("WEBP"), "animated"),
        "gif": (encoded(picture(), "GIF"), "no PNG, JPEG or WebP"),
        "tiff": (encoded(picture(), "TIFF"), "no PNG, JPEG or WebP"),
        "bmp": (encoded(picture(), "BMP"), "no PNG, JPEG or WebP"),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "no PNG, JPEG or WebP"),
        "html": (b"<script>alert(1)</script>", "no PNG, JPEG or WebP"),
        "empty": (b"", "no PNG, JPEG or WebP"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no PNG, JPEG or WebP"),
        "polyglot": (photo + b"PK\x03\x04 an archive behind the image", "behind the image"),
        "script behind": (photo + b"<?php system($_GET[0]);", "behind the image"),
        "signature only": (photo[:8], "no PNG, JPEG or WebP"),
        "broken pixels": (photo[:60] + bytes(40) + photo[100:], "damaged"),
        "huge comment": (huge_text(), "damaged"),
    }


def readable_images() -> dict[str, bytes]:
    """Unusual files that are images all the same."""
    deep = Image.fromarray((np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64))
    return {
        "cmyk": encoded(picture().convert("CMYK"), "JPEG"),
        "16 bits": png(deep),
        "gray": png(picture().convert("L")),
        "gray and alpha": png(picture().convert("LA")),
        "palette": png(picture().convert("P")),
        "alpha": png(picture().convert("RGBA")),
        "progressive": encoded(picture(), "JPEG", progressive=True),
        "lossless webp": encoded(picture(), "WEBP", lossless=True),
    }
