"""Images in and out: any input becomes one upright RGB image, and edits become files that say how they were made.

`FluxKontextPipeline` crashes on most of these inputs. A PNG file carries its origin in text chunks, JPEG and WebP in
the comment of EXIF. Files are written whole or not at all. So an image can be made again, and a second run over a
folder finds what it has made already.
"""

from __future__ import annotations

import base64
import functools
import json
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.image_arrays import image_from_array, scaled_image
from kontext_fast.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image


IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)
"""Of the files in a folder that are taken for images, in lower case."""

READ_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
"""Pillow's formats that are read, whatever a file is called: Pillow would start Ghostscript for PostScript."""

BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, MemoryError, struct.error)
"""What Pillow's decoders raise for files that are broken, or made to break them."""

_HEIF = frozenset({".heic", ".heif"})

_SIXTEEN_BIT = 65535

FORMATS: Final[Mapping[str, str]] = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Pillow's format by the suffix of the file."""

_LOSSY: Final[Mapping[str, Mapping[str, Any]]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
}

_SOFTWARE, _EXIF, _USER_COMMENT = 0x0131, 0x8769, 0x9286
"""EXIF tags."""
_ASCII = b"ASCII\0\0\0"
"""How the EXIF standard marks the encoding of a comment."""


def to_rgb(image: Any) -> Image:
    """An upright 8-bit sRGB image of mode RGB; transparent parts become white.

    Takes a path, the content of a file, a PIL image of any mode, a numpy array (height, width[, channels]: uint8,
    uint16 or float in 0..1), a torch tensor ([1,] channels, height, width or channels last: uint8 or float in 0..1), or
    a list of them, which are joined side by side. Raises InvalidInput for everything else.
    """
    from PIL import Image

    if isinstance(image, list | tuple):
        return _side_by_side([to_rgb(each) for each in image])
    if isinstance(image, str | Path):
        return _read(Path(image))
    if hasattr(image, "fs"):
        return _read_elsewhere(image)
    if isinstance(image, bytes):
        return _decoded(BytesIO(image), "The input image")
    if isinstance(image, Image.Image):
        return _upright_rgb(image, "The input image")
    if hasattr(image, "__array__"):
        return image_from_array(image)
    raise InvalidInput(
        f"An input image cannot be of type {type(image).__name__}; give a path, a PIL image, an array or a tensor."
    )


STITCHED: Final = "kontext-fast stitched"
"""In `Image.info`: how many images one is made of."""


def _side_by_side(images: list[Image]) -> Image:
    """One image of them, from left to right in the height of the first: FLUX.1-Kontext reads one.

    So ComfyUI's node ImageStitch (comfy_extras/nodes_images.py) does it to the right with `match_image_size`.
    """
    from PIL import Image

    if not images:
        raise InvalidInput("The list of input images is empty; give one image, or none for text-to-image.")
    first, *others = images
    if not others:
        return first
    height = first.height
    parts = [first]
    for image in others:
        width = max(1, round(image.width * height / image.height))
        parts.append(image if image.height == height else image.resize((width, height), Image.Resampling.LANCZOS))
    joined = Image.new("RGB", (sum(part.width for part in parts), height))
    left = 0
    for part in parts:
        joined.paste(part, (left, 0))
        left += part.width
    joined.info[STITCHED] = len(parts)
    return joined


def _read(path: Path) -> Image:
    if not path.exists():
        raise InvalidInput(f"There is no image {path}; check the path.")
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder, not an image; give one image file.")
    if path.suffix.lower() in _HEIF:
        _register_heif(path)
    return _decoded(path, str(path))


def _read_elsewhere(address: Any) -> Image:
    from kontext_fast.records.addresses import read

    if address.suffix.lower() in _HEIF:
        _register_heif(address)
    return _decoded(BytesIO(read(address)), str(address))


def _decoded(source: Path | BytesIO, name: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Below twice the limit of its decompression-bomb check Pillow only warns.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=readable_formats()) as image:
                return _upright_rgb(image, name)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InvalidInput(f"{name} has too many pixels; scale it down to {Image.MAX_IMAGE_PIXELS} or fewer.") from None
    except PermissionError:
        raise InvalidInput(f"{name} may not be read by this user; change its permissions.") from None
    except UnidentifiedImageError:
        raise InvalidInput(f"{name} is not an image that can be read; give a PNG, JPEG or WebP file.") from None
    # Only of the header: what comes later is named where it is decoded.
    except BROKEN as error:
        raise _damaged(name, error) from error


def readable_formats() -> list[str]:
    """Those of `READ_FORMATS` that can be read here; `_register_heif` adds HEIF."""
    from PIL import Image, features

    here = {"AVIF": features.check("avif"), "HEIF": "HEIF" in Image.OPEN}
    return [name for name in READ_FORMATS if here.get(name, True)]


def _damaged(name: str, error: Exception) -> InvalidInput:
    return InvalidInput(f"{name} is damaged or cut off ({error or type(error).__name__}); give an intact copy.")


def _register_heif(path: Path) -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise InvalidInput(
            f"{path} is a HEIC photo, which needs `pip install pillow-heif`; install it, or save the photo as JPEG."
        ) from None
    register_heif_opener()


def _upright_rgb(image: Image, name: str) -> Image:
    from PIL import ImageOps

    if image.width < 1 or image.height < 1:
        raise InvalidInput(f"{name} has no pixels; give another one.")
    try:
        image.load()
        return _opaque_rgb(ImageOps.exif_transpose(image))
    except BROKEN as error:
        raise _damaged(name, error) from error


def _opaque_rgb(image: Image) -> Image:
    import numpy as np
    from PIL import Image

    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        return _to_srgb(scaled_image(np.asarray(image).astype(np.float64) / _SIXTEEN_BIT).convert("L"), profile)
    if image.mode == "F":
        return image_from_array(np.asarray(image))
    if image.mode == "La":
        # Pillow converts premultiplied gray to nothing else.
        image = image.convert("LA")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        opaque = Image.alpha_composite(white, layered)
        # A profile of gray images converts those only.
        return _to_srgb(opaque.convert("L" if image.mode in ("L", "LA") else "RGB"), profile)
    if image.mode not in ("L", "RGB", "CMYK"):
        return _to_srgb(image.convert("RGB"), profile)
    return _to_srgb(image, profile)


def _to_srgb(image: Image, profile: bytes | None) -> Image:
    """Apply an embedded color profile, whatever it is called. One that is broken or of another color space than the
    image is ignored, as browsers do."""
    from PIL import ImageCms

    if profile:
        try:
            if not _is_srgb(profile):
                converted = _converted(image, profile)
                if converted is not None:
                    return converted
        except (ImageCms.PyCMSError, OSError):
            pass
    return image.convert("RGB")


def _converted(image: Image, profile: bytes) -> Image | None:
    """`image` in sRGB; None where `profile` is of another color space."""
    from PIL import ImageCms

    embedded = ImageCms.ImageCmsProfile(BytesIO(profile))
    if embedded.profile.xcolor_space.strip() != {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}[image.mode]:
        return None
    return ImageCms.profileToProfile(image, embedded, ImageCms.createProfile("sRGB"), outputMode="RGB")


_SRGB_TOLERANCE = 3
"""Levels of 255 by which the colors of an sRGB profile differ between those who wrote one."""


@functools.lru_cache(maxsize=16)
def _is_srgb(profile: bytes) -> bool:
    """Whether converting from `profile` to sRGB leaves colors what they are, so that pixels stay untouched."""
    import numpy as np
    from PIL import Image

    levels = np.linspace(0, 255, 18).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(len(levels), -1, 3)
    converted = _converted(Image.fromarray(cube), profile)
    if converted is None:
        return False
    return bool(np.abs(np.asarray(converted).astype(int) - cube).max() <= _SRGB_TOLERANCE)


def data_url(image: Image, kind: str = "PNG", **options: Any) -> str:
    """`image` as the source of an `<img>`: a file of Pillow's format `kind`, saved with `options`, in base64."""
    content = BytesIO()
    image.save(content, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What an image was made from, and how."""

    instruction: str
    preset: str
    checkpoint: str
    """As records call it, which is no path."""
    steps: int
    guidance: float
    seed: int | None
    """None only where it is still to be drawn."""
    negative: str | None = None
    true_cfg: float = 1.0
    size: tuple[int, int] | None = None
    """(width, height) in pixels as requested, or None for the native area."""
    lora: tuple[str, ...] = ()
    """File names with strengths."""
    images: int = 1
    """How many were joined to its input."""

    @classmethod
    def of(cls, request: Any, *, seed: int | None, preset: str, checkpoint: str, lora: tuple[str, ...] = ()) -> Origin:
        """The origin of an image of `request`, an `EditRequest`."""
        return cls(
            instruction=request.instruction,
            preset=preset,
            checkpoint=checkpoint,
            steps=request.steps,
            guidance=request.guidance,
            seed=seed,
            negative=request.negative,
            true_cfg=request.true_cfg,
            size=request.size,
            lora=lora,
            images=request.image.info.get(STITCHED, 1) if request.image else 1,
        )

    def facts(self) -> dict[str, str]:
        """The fields as texts, without those that were not set."""
        values: dict[str, object] = {
            "seed": self.seed,
            "preset": self.preset,
            "checkpoint": self.checkpoint,
            "instruction": self.instruction,
            "steps": self.steps,
            "guidance": self.guidance,
            "negative": self.negative,
            "true_cfg": None if self.true_cfg == 1 else self.true_cfg,
            "size": None if self.size is None else "x".join(map(str, self.size)),
            "lora": ", ".join(self.lora) or None,
            "images": None if self.images == 1 else self.images,
        }
        return {name: str(value) for name, value in values.items() if value is not None}


_ORIGIN_BYTES = 2**16
_KEYS = ("software", "version", *Origin.__dataclass_fields__)


@dataclass(frozen=True)
class ImageFile:
    """A place for one image; raises InvalidInput on creation where `path` cannot become a PNG, JPEG or WebP file."""

    path: Path

    def __post_init__(self) -> None:
        from kontext_fast.records.store import require_folder_for

        if self.path.suffix.lower() not in FORMATS:
            raise InvalidInput(f"{self.path} does not end in {', '.join(FORMATS)}; give a name that does.")
        if isinstance(self.path, Path) and self.path.is_dir():
            raise InvalidInput(f"{self.path} is a folder; give the name of a file.")
        require_folder_for(self.path)

    def save(self, image: Image, origin: Origin) -> None:
        """Write `image` and its origin; a missing folder is made, an existing file is replaced.

        Raises InvalidInput where the path cannot be written.
        """
        from kontext_fast.records.store import write_atomically

        facts = {"software": "kontext-fast", "version": __version__, **origin.facts()}
        content = BytesIO()
        kind = FORMATS[self.path.suffix.lower()]
        if kind == "PNG":
            image.save(content, format=kind, pnginfo=_text_chunks(facts))
        else:
            image.save(content, format=kind, exif=_exif(facts), **_LOSSY[kind])
        try:
            write_atomically(self.path, content.getvalue())
        except OSError as error:
            raise InvalidInput(
                f"{self.path} cannot be written ({error.strerror or error}); choose another place."
            ) from error


def read_origin(path: str | Path) -> dict[str, str]:
    """The facts of `Origin.facts` that the file at `path` carries, with `software` and `version`; empty for a file
    that is no image or was made by another program."""
    from PIL import Image

    try:
        # Not loaded: the facts stand before the pixels. Of a file elsewhere not much more than them is read.
        source: Any = path
        if hasattr(path, "fs"):
            from kontext_fast.records.addresses import opened

            source = opened(path, _ORIGIN_BYTES)
        with Image.open(source, formats=tuple(FORMATS.values())) as image:
            facts = dict(image.info) if image.format == "PNG" else _from_exif(image)
    except (*BROKEN, RecursionError):
        return {}
    return {key: str(facts[key]) for key in _KEYS if key in facts}


def _text_chunks(facts: Mapping[str, str]) -> Any:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, value in facts.items():
        chunks.add_itxt(key, value)
    return chunks


def _exif(facts: Mapping[str, str]) -> Any:
    from PIL import Image

    exif = Image.Exif()
    exif[_SOFTWARE] = f"{facts['software']} {facts['version']}"
    exif.get_ifd(_EXIF)[_USER_COMMENT] = _ASCII + json.dumps(facts).encode("ascii")
    return exif


def _from_exif(image: Image) -> dict[str, object]:
    comment = image.getexif().get_ifd(_EXIF).get(_USER_COMMENT)
    if not isinstance(comment, bytes) or not comment.startswith(_ASCII):
        return {}
    facts = json.loads(comment.removeprefix(_ASCII))
    return facts if isinstance(facts, dict) else {}
