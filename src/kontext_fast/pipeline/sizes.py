"""The sizes that are really run: output, reference and token counts, decided before anything is loaded.

`FluxKontextPipeline` changes sizes by itself: it rescales every output to one megapixel and stretches every input
image to one of 17 sizes, whatever the output. The planner decides instead, and `edit` enforces its plan.

- No size requested: the native area in the aspect of the input image, square without one.
- A size requested: exactly that size, in multiples of 16, or an error that names the nearest valid ones.
- The reference keeps the aspect of the input image. It has the native area, since that is what Kontext was trained
  on, but never clearly more tokens than the output: a 512x512 edit carries a 512x512 reference, so that small edits
  are really cheaper, and a 2048x2048 edit still carries a reference of one megapixel.
- For a native size of 1024 both come from the 17 sizes that Kontext was trained on, as long as one of them fits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kontext_fast.errors import InvalidInput

MULTIPLE = 16
"""Pixels per side of one token: the VAE reduces by 8 and 2x2 latents make a token."""

MAX_ASPECT = 4.0
"""Input images longer than 4:1 are refused: at the native area their short side would be too short."""

MAX_ENLARGEMENT = 4
"""Limit of the square root of an output's area, as a multiple of the native size."""

TRAINED_SIZES = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
)
"""(width, height) of the images that FLUX.1-Kontext was trained on; diffusers snaps references to them too."""

_TRAINED_NATIVE = 1024

_TRAINED_STRETCH = 1.09
"""Neighbours in TRAINED_SIZES differ in aspect by up to 17 %, so any aspect in their range is within this of one."""

_VISIBLE_STRETCH = 1.03
"""Stretching by less than 3 % is not reported."""

_TOKEN_TOLERANCE = 1.02
"""The trained sizes differ by up to 2 % in area, which alone is no reason to use a smaller reference."""

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class SizePlan:
    """Sizes in pixels and token counts of one transformer call per image, as they will be run."""

    width: int
    height: int
    reference_width: int | None
    """None for text-to-image."""
    reference_height: int | None
    text_tokens: int
    image_tokens: int
    reference_tokens: int
    explanation: str
    """One sentence for people: which sizes are run and how the input is changed."""

    @property
    def size(self) -> Size:
        return self.width, self.height

    @property
    def reference_size(self) -> Size | None:
        if self.reference_width is None or self.reference_height is None:
            return None
        return self.reference_width, self.reference_height


def plan_size(image_size: Size | None, *, requested: Size | None, native: int, text_tokens: int) -> SizePlan:
    """Plan one edit of an image of `image_size` (width, height) pixels, or text-to-image where it is None.

    `native` is the side in pixels of the square that the checkpoint was trained at; `text_tokens` the length of the
    padded instruction. Raises InvalidInput for a size that cannot be run.
    """
    if image_size is not None:
        _check_image_size(image_size)
    if requested is not None:
        check_requested_size(requested)
        _check_enlargement(requested, native)

    fitted = None if image_size is None else _native_size(image_size, native)
    output = requested or fitted or (native, native)
    reference = fitted
    if image_size is not None and fitted is not None and _tokens(fitted) > _TOKEN_TOLERANCE * _tokens(output):
        reference = _nearest_size(_aspect(image_size), math.prod(output))

    return SizePlan(
        width=output[0],
        height=output[1],
        reference_width=reference[0] if reference else None,
        reference_height=reference[1] if reference else None,
        text_tokens=text_tokens,
        image_tokens=_tokens(output),
        reference_tokens=_tokens(reference) if reference else 0,
        explanation=_explain(image_size, output, reference, requested=requested is not None),
    )


def parse_size(text: str) -> Size:
    """Read "WIDTHxHEIGHT" in pixels. Raises InvalidInput."""
    width, separator, height = text.lower().partition("x")
    try:
        if not separator:
            raise ValueError(text)
        return int(width), int(height)
    except ValueError:
        raise InvalidInput(f"Size {text!r} is not WIDTHxHEIGHT; write for example 1024x768.") from None


def check_requested_size(requested: Size) -> None:
    """Raise InvalidInput unless `requested` (width, height) in pixels is an output size of any checkpoint."""
    width, height = requested
    if width <= 0 or height <= 0:
        raise InvalidInput(f"Size {width}x{height} is not positive; ask for at least {MULTIPLE}x{MULTIPLE}.")
    if width % MULTIPLE or height % MULTIPLE:
        raise InvalidInput(
            f"Size {width}x{height} is not a multiple of {MULTIPLE}; ask for {_nearest_multiples(requested)}."
        )


def _check_enlargement(requested: Size, native: int) -> None:
    limit = MAX_ENLARGEMENT * native
    if math.prod(requested) > limit**2:
        raise InvalidInput(
            f"Size {requested[0]}x{requested[1]} is more than {MAX_ENLARGEMENT} times the {native}x{native} that this "
            f"checkpoint is made for; ask for at most {limit}x{limit}."
        )


def _check_image_size(image_size: Size) -> None:
    width, height = image_size
    if min(width, height) < MULTIPLE:
        raise InvalidInput(
            f"The input image has {width}x{height} pixels, which is too small to edit; "
            f"give one of at least {MULTIPLE}x{MULTIPLE}."
        )
    if max(width / height, height / width) > MAX_ASPECT:
        raise InvalidInput(
            f"The input image has {width}x{height} pixels, which is too elongated to edit; "
            f"crop it to {MAX_ASPECT:g}:1 or less."
        )


def _native_size(image_size: Size, native: int) -> Size:
    """The size of native area that suits an image: a trained one where that keeps the aspect, else the nearest."""
    aspect = _aspect(image_size)
    if native == _TRAINED_NATIVE:
        # The same choice as diffusers makes, so that an edit without a size matches the stock pipeline's reference.
        trained = min(TRAINED_SIZES, key=lambda size: (abs(aspect - _aspect(size)), size))
        if _stretch(aspect, trained) <= _TRAINED_STRETCH:
            return trained
    return _nearest_size(aspect, native * native)


def _nearest_size(aspect: float, area: int) -> Size:
    """The pair of multiples of 16 nearest to both; the aspect counts twice, because stretching is easy to see."""
    columns = math.sqrt(area * aspect) / MULTIPLE
    rows = math.sqrt(area / aspect) / MULTIPLE
    candidates = [(column * MULTIPLE, row * MULTIPLE) for column in _neighbours(columns) for row in _neighbours(rows)]
    return min(
        candidates,
        key=lambda size: (2 * math.log(_stretch(aspect, size)) + abs(math.log(math.prod(size) / area)), size),
    )


def _neighbours(value: float) -> range:
    return range(max(1, math.floor(value) - 1), math.ceil(value) + 2)


def _nearest_multiples(size: Size) -> str:
    below = tuple(max(1, side // MULTIPLE) * MULTIPLE for side in size)
    above = tuple(-(-side // MULTIPLE) * MULTIPLE for side in size)
    names = [f"{width}x{height}" for width, height in dict.fromkeys((below, above))]
    return " or ".join(names)


def _aspect(size: Size) -> float:
    return size[0] / size[1]


def _stretch(aspect: float, size: Size) -> float:
    """By which factor, at least 1, an image of `aspect` is stretched along one side to fill `size`."""
    ratio = aspect / _aspect(size)
    return max(ratio, 1 / ratio)


def _tokens(size: Size) -> int:
    return (size[0] // MULTIPLE) * (size[1] // MULTIPLE)


def _explain(image_size: Size | None, output: Size, reference: Size | None, *, requested: bool) -> str:
    origin = "as requested" if requested else "the native size of this checkpoint"
    sentence = f"The output is {output[0]}x{output[1]} pixels, {origin}"
    if image_size is None or reference is None:
        return sentence + "."
    if not requested:
        sentence += " in the aspect of the input"
    if reference == image_size:
        return sentence + "; the input is read at its own size."
    sentence += f"; the input of {image_size[0]}x{image_size[1]} is read at {reference[0]}x{reference[1]}"
    stretch = _stretch(_aspect(image_size), reference)
    if stretch > _VISIBLE_STRETCH:
        sentence += f", stretched by {100 * (stretch - 1):.0f} %"
    return sentence + "."
