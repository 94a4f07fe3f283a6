"""The ways in which a preset is used besides those of most outputs of a verification: one image per call, repeated
inputs, true CFG. A preset may be exact in batches and return something else alone; a verdict names what it covers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from kontext_fast.records.schema import Condition
from kontext_fast.verify.comparisons import (
    FidelityDistances,
    Outcome,
    compare_with_floor,
    compare_with_seed_noise,
    far_where_changed,
)
from kontext_fast.verify.findings import Repeat, compare_tail, contradiction, repeats_sentence, tail_sentence
from kontext_fast.verify.margins import Margins

CONDITIONS: tuple[Condition, ...] = get_args(Condition)
CONDITION_ITEMS = 8
"""Items of each condition, the fewest that can be compared with the floor."""
TRUE_CFG = 2.0
"""With which presets are verified."""


def condition_arm(preset: str, condition: Condition) -> str:
    """The name of the arm of a preset, or of baseline, under a condition."""
    return f"{preset}, {condition}"


_WORDS: Mapping[Condition, str] = {
    "one by one": "one image per call with repeated inputs",
    "true CFG": f"true CFG {TRUE_CFG:g}, one image per call",
}

AMPLIFICATION: Mapping[Condition, float] = {"one by one": 1.0, "true CFG": 2 * TRUE_CFG - 1}
"""How much farther rounding may take outputs: CFG adds `TRUE_CFG` of one velocity and subtracts the rest of another."""


@dataclass(frozen=True)
class ConditionEvidence:
    """Outputs of a preset under a condition, compared with those of baseline under the same one."""

    name: Condition
    identical: bool
    fidelity: tuple[FidelityDistances, ...]
    """With the floor and the seed noise of the usual outputs."""
    failures: tuple[str, ...] = ()
    repeats: tuple[Repeat, ...] = ()
    not_run: str | None = None
    """Why the preset made no output; it is not verified under this condition then."""


def coverage_sentence(conditions: Sequence[ConditionEvidence], batch: int, another_order: bool) -> str:
    """How a preset was used, and how not."""
    images = "1 image" if batch == 1 else f"up to {batch} images"
    ran = {condition.name for condition in conditions if condition.not_run is None}
    covered = [f"calls of {images}", *(["another order"] if another_order else [])]
    covered += [_WORDS[name] for name in CONDITIONS if name in ran]
    reasons = {condition.name: condition.not_run for condition in conditions}
    missing = [
        f"{_WORDS[name]}{f' ({reason.rstrip(chr(46))})' if (reason := reasons.get(name)) else ''}"
        for name in CONDITIONS
        if name not in ran
    ]
    not_verified = f" Not verified with {' and '.join(missing)}." if missing else ""
    return f"Covers {', '.join(covered)}.{not_verified}"


def loss_in_condition(condition: ConditionEvidence, margins: Margins, *, rounding_only: bool) -> str | None:
    """Why the outputs under a condition are a loss, where those of other calls are none; None where they are none too.

    `rounding_only` holds them to the floor, by the means of items, by the middle one of those that differ at all, and
    by the tail of single outputs; else they are held to the noise of seeds. The largest distance alone is no loss:
    rounding turns over one item in so many, and which one it is differs between any two arms.
    """
    where = f"With {_WORDS[condition.name]}"
    if condition.not_run is not None:
        return None
    if condition.failures:
        names = ", ".join(condition.failures[:3])
        return f"{where} it failed on {len(condition.failures)} items on which baseline succeeded ({names})."
    if condition.repeats:
        return f"{where}, {repeats_sentence(condition.repeats)}"
    for distances in condition.fidelity:
        if not distances.to_baseline:
            continue
        if rounding_only:
            amplified = _amplified(distances, condition.name)
            floor = compare_with_floor(amplified, distances.to_baseline, margins)
            if floor is not None and contradiction([floor], margins) is not None:
                ratio = max(floor.ratio, floor.median_ratio, key=lambda ratio: ratio.lower)
                return (
                    f"{where} it is another preset: the distance to baseline in {floor.metric} is "
                    f"{min(ratio.value, 1000):.2f} times the floor ({floor.arm}) there."
                )
            changed = far_where_changed(amplified, distances.to_baseline, margins)
            if changed is not None:
                times = min(changed.median_ratio.value, 1000)
                return (
                    f"{where} some items are other pictures: where there is any distance to baseline in "
                    f"{changed.metric}, its median is {times:.2f} times the floor ({changed.arm})."
                )
            continue
        noise = compare_with_seed_noise(distances, margins)
        if noise is not None and noise.outcome is Outcome.FAILED:
            return (
                f"{where} the distance to baseline in {noise.metric} is {noise.median:.2f} of the seed noise at the "
                f"median and {noise.p90:.2f} at the 90th percentile."
            )
    if not rounding_only:
        return None
    tails = [compare_tail(_amplified(distances, condition.name), margins) for distances in condition.fidelity]
    far = tail_sentence([tail for tail in tails if tail is not None], margins)
    return None if far is None else f"{where}, {far}"


def is_within_floor(condition: ConditionEvidence, margins: Margins) -> bool:
    """Whether outputs are as close to baseline's as rounding brings them, by a bound and in every metric."""
    compared = [
        compare_with_floor(_amplified(distances, condition.name), distances.to_baseline, margins)
        for distances in condition.fidelity
    ]
    outcomes = [comparison.outcome for comparison in compared if comparison is not None]
    return bool(outcomes) and all(outcome is Outcome.PASSED for outcome in outcomes)


def _amplified(distances: FidelityDistances, name: Condition) -> FidelityDistances:
    factor = AMPLIFICATION[name]
    floors = {
        arm: {item: [factor * value for value in values] for item, values in by_item.items()}
        for arm, by_item in distances.floors.items()
    }
    return replace(distances, floors=floors)
