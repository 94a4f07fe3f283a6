"""`clip_text`: 100 x the cosine between the output and the words for it.

The words are the output's caption where the item has one, else the instruction. Scores of two CLIP models cannot be
compared, so the model and the hash of its weights are part of every result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from kontext_fast.metrics.base import Case, Control
from kontext_fast.metrics.clip_model import ClipMetric, load_clip


class ClipText(ClipMetric):
    name: ClassVar[str] = "clip_text"
    title: ClassVar[str] = "CLIP text score (100 x cosine)"
    must_detect: ClassVar[frozenset[Control]] = frozenset({Control.SWAPPED})

    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        clip = load_clip(self.setting)
        pictures = clip.images([case.output for case in cases])
        words = clip.texts([case.item.output_caption or case.item.instruction for case in cases])
        return [100 * float(cosine) for cosine in (pictures * words).sum(-1)]
