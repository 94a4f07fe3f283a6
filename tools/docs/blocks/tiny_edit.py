"""An edit of the bundled checkpoint: the input, baseline's output and that of two presets, as they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kontext_fast.analysis.judge_scores import judgement_of
from kontext_fast.records.schema import Record, StoredItem
from kontext_fast.report.text.markup import Markdown, paragraphs, table
from kontext_fast.report.verification import VerificationReport
from tools.docs.doc_context import DocContext

SHOWN = ("faithful", "turbo")
WIDTH = 150


@dataclass(frozen=True)
class _Edit:
    item: StoredItem
    pictures: tuple[tuple[str, Path], ...]
    """What each is, and where it is stored."""


def render(context: DocContext) -> Markdown:
    """The first item of the newest verification that baseline and the shown presets all get right."""
    found = _first_right(context.verification, context) if context.verification else None
    if found is None:
        return paragraphs(["No verification is stored yet, so there is no edit to show."])
    root = context.published.folder.parent
    cells = [
        Markdown(f'<img src="{context.to_root}{file.relative_to(root).as_posix()}" alt="{name}" width="{WIDTH}">')
        for name, file in found.pictures
    ]
    caption = Markdown(
        '"{}", by the bundled toy model `tiny`: the first stored edit of the verification that all three get right. It '
        "shows that the presets work, not how real Kontext images look."
    ).format(found.item.instruction)
    return paragraphs([table([name for name, _ in found.pictures], [cells]), caption])


def _first_right(verification: VerificationReport, context: DocContext) -> _Edit | None:
    baseline = verification.arms.baseline
    shown = [record for name in SHOWN for record in verification.arms.presets if record.preset == name]
    if baseline is None or len(shown) < len(SHOWN):
        return None
    records = (baseline, *shown)
    for item in verification.result.items:
        for seed in sorted({output.seed for output in baseline.outputs if output.item == item.id}):
            digests = [("input", item.image), *((record.preset, _output(record, item.id, seed)) for record in records)]
            files = [(name, context.published.images.image_path(digest)) for name, digest in digests if digest]
            stored = len(files) == len(digests) and all(file.is_file() for _, file in files)
            if stored and all(_is_right(record, item.id, seed) for record in records):
                return _Edit(item, tuple(files))
    return None


def _is_right(record: Record, item: str, seed: int) -> bool:
    image = _output(record, item, seed)
    judged = judgement_of(record, item, seed, image) if image else None
    return bool(judged and judged.done and judged.kept)


def _output(record: Record, item: str, seed: int) -> str | None:
    return next((output.image for output in record.outputs if (output.item, output.seed) == (item, seed)), None)
