"""The records of a verification while it runs: every arm becomes one, on disk before the next one runs."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from kontext_fast.bench.recorder import redact
from kontext_fast.optimizations.plan import Plan
from kontext_fast.records.schema import (
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
