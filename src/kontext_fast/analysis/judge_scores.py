"""What the judge said of the stored outputs, read from the scores of the records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kontext_fast.analysis.groups import Run
from kontext_fast.records.schema import Record

DONE, KEPT = "judge_done", "judge_kept"

_Output = tuple[str, int, str]
"""Item, seed and hash of the image."""


@dataclass(frozen=True)
class StoredJudgement:
    """What the judge said of one output image; None where it could not say."""

    done: bool | None
    kept: bool | None
    note: str | None

    @property
    def accepted(self) -> bool | None:
        return None if self.done is None or self.kept is None else self.done and self.kept


def accepted_by_item(runs: Iterable[Run]) -> dict[str, float]:
    """Per judged item the fraction of its distinct outputs that were accepted.

    Rounds repeat the same seeds, so an output that came out pixel for pixel again is the same output, not another.
    """
    outputs: dict[_Output, float] = {}
    for run in runs:
        stored = {(sample.item, sample.seed, image) for sample in run.samples for image in sample.images}
        for output, judged in _judgements(run.record).items():
            if output in stored and judged.accepted is not None:
                outputs[output] = float(judged.accepted)
    by_item: dict[str, list[float]] = defaultdict(list)
    for (item, _, _), accepted in outputs.items():
        by_item[item].append(accepted)
    return {item: float(np.mean(values)) for item, values in by_item.items()}


def judgement_of(record: Record, item: str, seed: int, image: str) -> StoredJudgement | None:
    """None where this output was not judged."""
    return _judgements(record).get((item, seed, image))


def _judgements(record: Record) -> dict[_Output, StoredJudgement]:
    """The judge's scores by output. Earlier versions stored `judge_accepted`, too, which follows from them."""
    answers: dict[_Output, dict[str, bool | None]] = defaultdict(dict)
    notes: dict[_Output, dict[str, None]] = defaultdict(dict)
    for score in record.scores:
        if score.metric in (DONE, KEPT):
            output = score.item, score.seed, score.image
            answers[output][score.metric] = None if score.value is None else bool(score.value)
            if score.note:
                notes[output][score.note] = None
    return {
        output: StoredJudgement(values.get(DONE), values.get(KEPT), "; ".join(notes[output]) or None)
        for output, values in answers.items()
    }
