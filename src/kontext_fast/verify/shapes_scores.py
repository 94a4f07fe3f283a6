"""Lets the judge of the shapes world look at every stored output of `tiny`.

Only `tiny` has learned that world. Outputs of other checkpoints get no scores, and reports say "not measured".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from PIL import Image

from kontext_fast.datasets.shapes import ShapesItem, held_out
from kontext_fast.datasets.shapes.judge import judge
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import Record, ResultFile, Sample, Score
from kontext_fast.records.store import ResultStore

METRICS = ("judge_done", "judge_kept", "judge_accepted")


def judge_records(store: ResultStore, on_progress: Callable[[int, int], None] | None = None) -> int:
    """Judge all outputs of `tiny` in `store`, append the scores, and return how many outputs were judged.

    `on_progress(done, total)` counts runs. Raises InvalidInput where a stored image or an item is missing.
    """
    result = store.load()
    records = [record for record in result.records if record.checkpoint and record.checkpoint.kind == "tiny"]
    items = _items(result)
    judged = 0
    for done, record in enumerate(records, start=1):
        scores = [score for sample in _kept_samples(record) for score in _scores(sample, items, store)]
        if scores:
            store.add_scores(record.run_id, scores)
        judged += len(scores) // len(METRICS)
        if on_progress is not None:
            on_progress(done, len(records))
    return judged


def _items(result: ResultFile) -> dict[str, ShapesItem]:
    """The items of the result by id, drawn again from its seed."""
    return {item.id: item for item in held_out(len(result.items), result.seed)}


def _kept_samples(record: Record) -> Iterator[Sample]:
    for measurement in record.measurements:
        for sample in measurement.samples:
            if sample.images and not sample.warmup:
                yield sample


def _scores(sample: Sample, items: dict[str, ShapesItem], store: ResultStore) -> Iterator[Score]:
    item = items.get(sample.item)
    if item is None:
        raise InvalidInput(f"Item {sample.item} is not one of the shapes world's; measure again with this version.")
    for digest in sample.images:
        path = store.image_path(digest)
        if not path.is_file():
            raise InvalidInput(f"The output {path.name} is missing from the result folder; measure again.")
        with Image.open(path) as image:
            verdict = judge(image, item)
        note = "; ".join(verdict.reasons) or None
        for metric, value in zip(METRICS, (verdict.done, verdict.kept, verdict.accepted), strict=True):
            yield Score(item=sample.item, seed=sample.seed, image=digest, metric=metric, value=value, note=note)
