"""PNG files with the origin of their image in text chunks, written atomically."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from kontext_fast.errors import InvalidInput
from kontext_fast.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

_KEYS = ("software", "version", "seed", "preset", "checkpoint", "instruction")


@dataclass(frozen=True)
class PngFile:
    """A place for one image; raises InvalidInput on creation where `path` cannot become a PNG file."""

    path: Path

    def __post_init__(self) -> None:
        if self.path.suffix.lower() != ".png":
            raise InvalidInput(
                f"{self.path} does not end in .png, and only PNG files keep the seed and preset; rename it."
            )
        if self.path.is_dir():
            raise InvalidInput(f"{self.path} is a folder; give the name of a PNG file.")

    def save(self, image: Image, *, seed: int, preset: str, checkpoint: str, instruction: str | None = None) -> None:
        """Write `image` with its origin in PNG text chunks; missing folders are made, an existing file is replaced.

        Raises InvalidInput where the path cannot be written.
        """
        from PIL.PngImagePlugin import PngInfo

        from kontext_fast.records.store import write_atomically

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
        content = BytesIO()
        image.save(content, format="PNG", pnginfo=metadata)
        try:
            write_atomically(self.path, content.getvalue())
        except OSError as error:
            raise InvalidInput(
                f"{self.path} cannot be written ({error.strerror or error}); choose another place."
            ) from error


def read_png_metadata(path: str | Path) -> dict[str, str]:
    """What `PngFile.save` wrote into the file at `path`: software, version, seed, preset, checkpoint, instruction."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        texts = getattr(image, "text", {})
    return {key: str(texts[key]) for key in _KEYS if key in texts}
