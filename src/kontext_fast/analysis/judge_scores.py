"""What the judge said of the stored outputs, read from the scores of the records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kontext_fast.analysis.groups import Run
from kontext_fast.records.schema import Record, Score

DONE, KEPT, ACCEPTED = "judge_done", "judge_kept", "judge_accepted"


@dataclass(frozen=True)
class Judgement:
    """On one output image; None where the judge could not say."""

    done: bool | None
    kept: bool | None
    accepted: bool | None
    note: str | None


def accepted_by_item(runs: Iterable[Run]) -> dict[str, float]:
    """Per judged item the fraction of its distinct outputs that were accepted.

    Rounds repeat the same seeds, so an output that came out pixel for pixel again is the same output, not another.
    """
    outputs: dict[tuple[str, int, str], float] = {}
    for run in runs:
        stored = {(sample.item, sample.seed, image) for sample in run.samples for image in sample.images}
        for score in run.record.scores:
            key = (score.item, score.seed, score.image)
            if score.metric == ACCEPTED and score.value is not None and key in stored:
                outputs[key] = float(score.value)
    by_item: dict[str, list[float]] = defaultdict(list)
    for (item, _, _), accepted in outputs.items():
        by_item[item].append(accepted)
    return {item: float(np.mean(values)) for item, values in by_item.items()}


def verdict(record: Record, item: str, seed: int, image: str) -> Judgement | None:
    """None where nobody judged this output."""
    of_output = {
        score.metric: score
        for score in record.scores
        if (score.item, score.seed, score.image) == (item, seed, image) and score.metric in (DONE, KEPT, ACCEPTED)
    }
    if not of_output:
        return None
    notes = dict.fromkeys(score.note for score in of_output.values() if score.note)
    return Judgement(
        done=_answer(of_output.get(DONE)),
        kept=_answer(of_output.get(KEPT)),
        accepted=_answer(of_output.get(ACCEPTED)),
        note="; ".join(notes) or None,
    )


def _answer(score: Score | None) -> bool | None:
    return None if score is None or score.value is None else bool(score.value)
