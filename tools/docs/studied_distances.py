"""How far the schedules of measured presets lie from all steps, from the study of schedules on `tiny`.

A preset of the study is the one whose techniques that leave out steps have the parameters that the measured plan has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.records.schema import BASELINE, AppliedOptimization
from kontext_fast.report.verification import Distances
from research.schedules.candidates import FEWER, STEPS, Candidate, candidates, masks

FILE = "pareto.json"
_DECIDES: Mapping[str, tuple[str, ...]] = {
    "step_reuse": ("order", "corrector", "warmup_share", "computed"),
    "cache_dit": ("first_blocks", "mask", "policy", "taylorseer_order"),
    "fewer_steps": ("steps_of_28",),
}
"""Of each technique that leaves out whole steps the parameters that say which."""
Key = tuple[str, str]


def studied_distances(folder: Path, group: AnalyzedGroup | None) -> Distances | None:
    """Of the presets of `group` that leave out steps, from the newest study below `folder`; None without one."""
    studies = sorted(folder.glob(f"**/{FILE}"), key=lambda file: file.parent.name)
    if not studies or group is None:
        return None
    study = json.loads(studies[-1].read_text(encoding="utf-8"))
    setup = study["setup"]
    found = {(finding["family"], finding["name"]): finding["distance"] for finding in study["findings"]}
    studied = {_key(candidate): found.get((candidate.family, candidate.name)) for candidate in _all(setup["steps"])}
    distances = {BASELINE: 0.0}
    for preset, plan in group.plans.items():
        distance = studied.get(_schedule(plan) or ("", ""))
        if distance is not None:
            distances[preset] = distance
    return Distances(
        distances,
        axis=f"distance to all {setup['steps']} steps, of 1 (schedule alone)",
        basis=f"{setup['items']} edits of {setup['checkpoint']}, both sides in {setup['precision']}",
    )


def _all(steps: int) -> Iterator[Candidate]:
    from kontext_fast.optimizations.techniques.engine import Engine

    yield from (candidate for candidate in candidates(steps, Engine()) if candidate.family in (FEWER, STEPS))
    # Records are read where cache-dit is not installed, too.
    yield from masks(steps)


def _key(candidate: Candidate) -> Key | None:
    if candidate.family == FEWER:
        return ("fewer_steps", json.dumps([candidate.steps]))
    return next(
        (key for applied in candidate.optimizations if (key := _decided(applied.name, applied.parameters()))), None
    )


def _schedule(plan: tuple[AppliedOptimization, ...]) -> Key | None:
    return next(
        (key for step in plan if (key := _decided(step.name, step.model_dump(mode="json")["parameters"]))), None
    )


def _decided(name: str, parameters: Mapping[str, Any]) -> Key | None:
    if name not in _DECIDES:
        return None
    return (name, json.dumps([parameters.get(key) for key in _DECIDES[name]]))
