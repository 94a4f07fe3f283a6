"""Records of the arms of a verification, made by hand: no image is drawn, and scores are whatever a test says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kontext_fast.records.schema import Arm, ArmRole, Condition, Output, Record, ResultFile, Score
from tests.records.builder import record, result, stored_verification

Key = tuple[str, int]
"""Item and seed."""


def stored_arm(
    name: str,
    role: ArmRole,
    images: Mapping[Key, str | None],
    *,
    preset: str | None = None,
    condition: Condition | None = None,
    scores: Mapping[str, Mapping[Key, float]] | None = None,
    failures: Mapping[Key, str] | None = None,
    **changes: Any,
) -> Record:
    """`images` are hashes, `scores` by metric; other `changes` are of the record."""
    return record(
        preset or name,
        0,
        arm=Arm(name=name, role=role, preset=preset, condition=condition),
        outputs=tuple(
            Output(item=item, seed=seed, image=image, failure=(failures or {}).get((item, seed)))
            for (item, seed), image in images.items()
        ),
        scores=tuple(
            Score(item=item, seed=seed, image="", metric=metric, value=value)
            for metric, by_key in (scores or {}).items()
            for (item, seed), value in by_key.items()
        ),
        **changes,
    )


def verification_of(*records: Record) -> ResultFile:
    return result(records).model_copy(update={"verification": stored_verification()})
