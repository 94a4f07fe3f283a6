"""Scores the stored outputs of a verification with every metric that can be had here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from kontext_fast.datasets.base import Item
from kontext_fast.errors import InvalidInput
from kontext_fast.metrics.base import Case, Metric, Need, NotMeasured, Role, Setting, StoredOutput, discover, facts_of
from kontext_fast.records.schema import MetricFacts, Output, Record, Score
from kontext_fast.records.store import ResultStore
from kontext_fast.verify.analysis import BETWEEN_SEEDS
from kontext_fast.verify.journal import Journal

_CHUNK = 16
"""Outputs whose pictures are in memory at once."""


class Scorer:
    """The metrics that can be had for one checkpoint and its items."""

    def __init__(self, setting: Setting, store: ResultStore, journal: Journal, items: Mapping[str, Item]) -> None:
        self._store = store
        self._journal = journal
        self._items = items
        self._metrics: list[Metric] = []
        self.facts: tuple[MetricFacts, ...] = tuple(self._prepare(metric(setting)) for metric in discover().values())

    def _prepare(self, metric: Metric) -> MetricFacts:
        """Keep the metric if it works here."""
        try:
            if metric.role is Role.QUALITY and metric.setting.checkpoint == "random":
                raise NotMeasured("the weights are random")
            for need in {Need.JUDGE, Need.MASK, Need.CAPTIONS} & set(metric.needs):
                if not any(Case(item, "", item.image).has(need) for item in self._items.values()):
                    raise NotMeasured(f"no item comes with {need.value.removeprefix('an item of ')}")
            metric.prepare()
        except NotMeasured as reason:
            return MetricFacts(name=metric.name, not_measured=f"Not measured: {reason}.")
        self._metrics.append(metric)
        return MetricFacts(**facts_of(metric))

    def look_ahead(self, records: Iterable[Record]) -> None:
        """Told before the first call of `score` which records will be scored, so that work can be shared out."""
        outputs = [
            StoredOutput(self._items[output.item], output.image, self._store.image_path(output.image))
            for record in records
            for output in record.outputs
            if output.image and self._store.image_path(output.image).is_file()
        ]
        for metric in self._metrics:
            metric.look_ahead(outputs)

    def score(self, record: Record, reference: Record, on_progress: Callable[[int], None]) -> list[Score]:
        """Scores of all outputs of `record`; fidelity is to `reference`, and for baseline to its own first seed."""
        found: list[Score] = []
        own = record is reference
        outputs = [output for output in record.outputs if output.image]
        by_key = {(output.item, output.seed): output for output in reference.outputs if output.image}
        for start in range(0, len(outputs), _CHUNK):
            chunk = outputs[start : start + _CHUNK]
            cases = {id(output): self._case(record, output, reference, by_key, own) for output in chunk}
            for metric in self._metrics:
                fidelity = metric.role is Role.FIDELITY
                fit = [output for output in chunk if all(cases[id(output)].has(need) for need in metric.needs)]
                scores = metric.scores([cases[id(output)] for output in fit]) if fit else []
                name = metric.name + (BETWEEN_SEEDS if own and fidelity else "")
                found += _as_scores(name, fit, scores)
            on_progress(len(chunk))
        return found

    def _case(
        self,
        record: Record,
        output: Output,
        reference: Record,
        by_key: Mapping[tuple[str, int], Output],
        own: bool,
    ) -> Case:
        other = by_key.get((output.item, output.seed))
        if own:
            first = min(seed for item, seed in by_key if item == output.item)
            other = None if output.seed == first else by_key[output.item, first]
        picture = self._open(output)
        against = self._open(other) if other else None
        comparable = against is not None and against.size == picture.size
        return Case(
            item=self._items[output.item],
            digest=output.image or "",
            output=picture,
            reference=against if comparable else None,
            latents=self._latents(record, output),
            reference_latents=self._latents(reference, other) if other and comparable else None,
        )

    def _latents(self, record: Record, output: Output) -> npt.NDArray[np.float32] | None:
        return self._journal.latents(record.arm.name, output.item, output.seed) if record.arm else None

    def _open(self, output: Output) -> Image.Image:
        path = self._store.image_path(output.image or "")
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except OSError:
            raise InvalidInput(f"The output {path.name} is missing from the result folder; verify again.") from None


def _as_scores(metric: str, outputs: Sequence[Output], scores: Sequence[float | bool | None]) -> Iterator[Score]:
    for output, value in zip(outputs, scores, strict=True):
        yield Score(item=output.item, seed=output.seed, image=output.image or "", metric=metric, value=value)
