"""The records of a verification: every arm becomes one while it runs, and its stored outputs are scored afterwards."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from kontext_fast.bench.recorder import redact
from kontext_fast.datasets.base import Item
from kontext_fast.metrics.base import Role, discover
from kontext_fast.metrics.scorer import Scorer, StoredOutput
from kontext_fast.optimizations.plan import Plan
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
from kontext_fast.verify.journal import Journal


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


class ArmOutputs:
    """The stored outputs of all arms."""

    def __init__(
        self, records: Mapping[str, Record], items: Mapping[str, Item], store: ResultStore, journal: Journal
    ) -> None:
        """`records` by the name of the arm."""
        self._records = records
        self._items = items
        self._store = store
        self._journal = journal

    def of(self, arm: str) -> list[StoredOutput]:
        """Each with the output of the arm's reference for the same item and seed; baseline, which has none, is
        compared with its own first seed of the item.
        """
        reference = self._reference(arm)
        images = self._images(reference)
        first_seeds: dict[str, int] = {}
        for item, seed in sorted(images):
            first_seeds.setdefault(item, seed)
        outputs = []
        for (item, seed), image in self._images(arm).items():
            other = seed if reference != arm else first_seeds[item]
            compared = (item, other) in images and (reference, other) != (arm, seed)
            outputs.append(
                StoredOutput(
                    item=self._items[item],
                    seed=seed,
                    image=image,
                    file=self._store.image_path(image),
                    reference_file=self._store.image_path(images[item, other]) if compared else None,
                    latents_file=self._journal.latents_file(arm, item, seed),
                    reference_latents_file=self._journal.latents_file(reference, item, other) if compared else None,
                )
            )
        return outputs

    def _reference(self, arm: str) -> str:
        facts = self._records[arm].arm
        return facts.preset if facts and facts.role == "order" and facts.preset else BASELINE

    def _images(self, arm: str) -> dict[tuple[str, int], str]:
        return {(output.item, output.seed): output.image for output in self._records[arm].outputs if output.image}


def score_arms(
    scorer: Scorer, outputs: ArmOutputs, arms: list[str], on_progress: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[str, tuple[Score, ...]]]:
    """The scores of one arm after the other. Raises InvalidInput where an image is missing."""
    fidelity = {metric.name for metric in discover().values() if metric.role is Role.FIDELITY}
    for arm, scores in scorer.score({arm: outputs.of(arm) for arm in arms}, on_progress):
        yield (
            arm,
            tuple(
                score.model_copy(update={"metric": score.metric + BETWEEN_SEEDS})
                if arm == BASELINE and score.metric in fidelity
                else score
                for score in scores
            ),
        )
