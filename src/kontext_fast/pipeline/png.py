"""Saved images say where they come from, and a file either exists whole or not at all."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from kontext_fast.errors import InvalidInput
from kontext_fast.records.atomic import write_atomically
from kontext_fast.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

_KEYS = ("software", "version", "seed", "preset", "checkpoint", "instruction")


def save_png(
    image: Image, path: str | Path, *, seed: int, preset: str, checkpoint: str, instruction: str | None = None
) -> None:
    """Write `image` with its origin in PNG text chunks; missing folders are made, an existing file is replaced.

    Raises InvalidInput where the path cannot be written.
    """
    from PIL.PngImagePlugin import PngInfo

    path = Path(path)
    metadata = PngInfo()
    origin = {
        "software": "kontext-fast",
        "version": __version__,
        "seed": str(seed),
        "preset": preset,
        "checkpoint": checkpoint,
        "instruction": instruction,
    }
    for key, value in origin.items():
        if value is not None:
            metadata.add_itxt(key, value)
    check_png_path(path)
    content = BytesIO()
    image.save(content, format="PNG", pnginfo=metadata)
    try:
        write_atomically(path, content.getvalue())
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written ({error.strerror or error}); choose another place.") from error


def check_png_path(path: Path) -> None:
    """Raise InvalidInput where `path` cannot become a PNG file; for use before the work is done."""
    if path.suffix.lower() != ".png":
        raise InvalidInput(f"{path} does not end in .png, and only PNG files keep the seed and preset; rename it.")
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder; give the name of a PNG file.")


def read_png_metadata(path: str | Path) -> dict[str, str]:
    """What `save_png` wrote into the file at `path`: software, version, seed, preset, checkpoint, instruction."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        texts = getattr(image, "text", {})
    return {key: str(texts[key]) for key in _KEYS if key in texts}
