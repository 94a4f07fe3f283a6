"""The records of a verification: every arm becomes one while it runs, and its stored outputs are scored afterwards."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from kontext_fast.datasets.base import Item
from kontext_fast.metrics.base import Role, discover
from kontext_fast.metrics.scorer import Scorer, StoredOutput
from kontext_fast.optimizations.presets import Plan
from kontext_fast.records.privacy import redact
from kontext_fast.records.schema import (
    BASELINE,
    Arm,
    Checkpoint,
    MetricFacts,
    Output,
    Record,
    ResultFile,
    Score,
    Status,
)
from kontext_fast.records.store import ResultStore
from kontext_fast.verify.analysis import BETWEEN_SEEDS
from kontext_fast.verify.conditions import condition_arm
from kontext_fast.verify.journal import Journal
from kontext_fast.verify.pictures import picture_scores


class ArmRecorder:
    """The result file of one verification."""

    def __init__(
        self, store: ResultStore, result: ResultFile, checkpoint: Checkpoint, environment: Mapping[str, Any]
    ) -> None:
        """`result` has what all arms have in common, and the records of arms that ran before; it is written at once."""
        self._store = store
        self._result = result
        self._checkpoint = checkpoint
        self._environment = environment
        self.records = {record.arm.name: record for record in result.records if record.arm}
        self._write()

    def add(
        self,
        arm: Arm,
        preset: str,
        outputs: Sequence[Output],
        *,
        status: Status = "ok",
        reason: str | None = None,
        plan: Plan | None = None,
        edits_s: tuple[float, ...] = (),
    ) -> None:
        """Record how an arm ended; one that made no image has crashed."""
        if status == "ok" and not any(output.image for output in outputs):
            failures = [output.failure for output in outputs if output.failure]
            status, reason = "crash", failures[0] if failures else "There was nothing to make."
        self.records[arm.name] = Record(
            run_id=secrets.token_hex(8),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            preset=preset,
            plan=plan.applied if plan else (),
            labels=plan.labels if plan else (),
            checkpoint=self._checkpoint,
            environment=dict(self._environment),
            round=0,
            order=len(self.records),
            status=status,
            reason=None if reason is None else redact(reason),
            arm=arm,
            outputs=tuple(outputs),
            edits_s=edits_s,
        )
        self._write()

    def add_scores(self, arm: str, scores: Sequence[Score]) -> None:
        self.records[arm] = self.records[arm].model_copy(update={"scores": tuple(scores)})
        self._write()

    def set_metrics(self, facts: tuple[MetricFacts, ...]) -> None:
        """Which metrics scored the outputs, and why others did not."""
        assert self._result.verification is not None
        verification = self._result.verification.model_copy(update={"metrics": facts})
        self._result = self._result.model_copy(update={"verification": verification})
        self._write()

    def _write(self) -> None:
        self._store.write(self._result.model_copy(update={"records": tuple(self.records.values())}))


def stored_outputs(
    arm: str, records: Mapping[str, Record], items: Mapping[str, Item], store: ResultStore, journal: Journal
) -> list[StoredOutput]:
    """The outputs of an arm, each with the output of the arm's reference for the same item and seed.

    The reference is baseline, the preset whose order is checked, or baseline under the same condition. Baseline itself
    is compared with its own first seed of the item. `records` are by arm.
    """
    facts = records[arm].arm
    reference = facts.preset if facts and facts.role == "order" and facts.preset else BASELINE
    if facts and facts.condition:
        reference = condition_arm(BASELINE, facts.condition)
    images = _images(records[reference])
    # The smallest seed of each item comes last, so that it is the one that stays.
    first_seeds = dict(sorted(images, reverse=True))
    outputs = []
    for (item, seed), image in _images(records[arm]).items():
        other = first_seeds[item] if arm == reference else seed
        compared = (item, other) in images and (reference, other) != (arm, seed)
        outputs.append(
            StoredOutput(
                item=items[item],
                seed=seed,
                image=image,
                file=store.image_path(image),
                reference_file=store.image_path(images[item, other]) if compared else None,
                latents_file=journal.latents_file(arm, item, seed),
                reference_latents_file=journal.latents_file(reference, item, other) if compared else None,
            )
        )
    return outputs


def _images(record: Record) -> dict[tuple[str, int], str]:
    return {(output.item, output.seed): output.image for output in record.outputs if output.image}


def score_arms(
    scorer: Scorer,
    outputs: Mapping[str, Sequence[StoredOutput]],
    on_progress: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[str, list[Score]]]:
    """The scores of one arm of `outputs` after the other, with what its pixels say. Raises InvalidInput where an image
    is missing.
    """
    fidelity = {metric.name for metric in discover().values() if metric.role is Role.FIDELITY}
    for arm, scores in scorer.score(outputs, on_progress):
        if arm == BASELINE:
            scores = [
                score.model_copy(update={"metric": score.metric + BETWEEN_SEEDS}) if score.metric in fidelity else score
                for score in scores
            ]
        else:
            scores = [*scores, *picture_scores(outputs[arm])]
        yield arm, scores
