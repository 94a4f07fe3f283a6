"""`clip_directional`: whether the image changed in the direction in which the caption changed.

The cosine between output minus input and output caption minus input caption, both embedded by CLIP; 0 for an output
that equals the input, which has no direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from kontext_fast.metrics.base import Case, Control, Need
from kontext_fast.metrics.clip_model import ClipMetric, load_clip

CAPTIONS = Need(
    "captions of the input and of the output",
    lambda case: case.item.input_caption is not None and case.item.output_caption is not None,
    of_item=True,
)
_NO_DIRECTION = 1e-6
"""Length below which a difference of unit vectors is rounding."""


class ClipDirectional(ClipMetric):
    name: ClassVar[str] = "clip_directional"
    title: ClassVar[str] = "CLIP directional similarity"
    needs: ClassVar[tuple[Need, ...]] = (CAPTIONS,)
    must_detect: ClassVar[frozenset[Control]] = frozenset({Control.SWAPPED, Control.UNEDITED})

    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        clip = load_clip(self.setting)
        inputs = [case.item.image.resize(case.output.size) for case in cases]
        picture = clip.images([case.output for case in cases]) - clip.images(inputs)
        words = clip.texts([case.item.output_caption or "" for case in cases])
        words = words - clip.texts([case.item.input_caption or "" for case in cases])
        lengths = picture.norm(dim=-1) * words.norm(dim=-1)
        dots = (picture * words).sum(-1)
        return [
            0.0 if float(length) < _NO_DIRECTION else float(dot) / float(length)
            for dot, length in zip(dots, lengths, strict=True)
        ]
