"""The ways in which a preset is used besides those of most outputs of a verification: one image per call, repeated
inputs, true CFG. A preset may be exact in batches and return something else alone; a verdict names what it covers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import get_args

from kontext_fast.records.schema import Condition
from kontext_fast.stats.bounds import Array, divided
from kontext_fast.verify.comparisons import (
    FidelityDistances,
    FloorComparison,
    Outcome,
    compare_with_floor,
    compare_with_seed_noise,
    far_where_changed,
    item_means,
    needed_within_seed_noise,
    seed_noise_ratios,
)
from kontext_fast.verify.findings import Repeat, compare_tail, contradiction, repeats_sentence, tail_sentence
from kontext_fast.verify.margins import Margins

CONDITIONS: tuple[Condition, ...] = get_args(Condition)
CONDITION_ITEMS = 16
"""Items of each condition at least: with them a preset at three times the limits is always told, and one at the limits
in 2 of 100 verifications (`research.few_items`)."""
CONDITION_SHARE = 1 / 8
"""Of the items, where that is more."""
TRUE_CFG = 2.0
"""With which presets are verified."""


def condition_count(items: int, at_least: int) -> int:
    """How many items are used in each condition, of so many in all; they are of the control items."""
    return max(at_least, int(CONDITION_SHARE * items))


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
    """With the floor of the usual outputs, and the seed noise of baseline under the condition."""
    failures: tuple[str, ...] = ()
    repeats: tuple[Repeat, ...] = ()
    not_run: str | None = None
    """Why the preset made no output; it is not verified under this condition then."""


@dataclass(frozen=True)
class Doubt:
    """A condition of which the outputs show neither a loss nor that there is none."""

    condition: Condition
    items: int
    needed: int | None = None
    """About so many items of the condition would tell; None where that is not known."""

    @property
    def reason(self) -> str:
        """As a clause."""
        few = f"{self.items} items cannot tell"
        if self.needed is None:
            return few
        if self.needed <= CONDITION_ITEMS:
            return f"{few}; about {self.needed} would"
        return f"{few}; about {self.needed} would, with --items {round(self.needed / CONDITION_SHARE)}"

    @property
    def sentence(self) -> str:
        return f"Not verified with {_WORDS[self.condition]}: {self.reason}."


def coverage_sentence(
    conditions: Sequence[ConditionEvidence], batch: int, another_order: bool, doubts: Sequence[Doubt] = ()
) -> str:
    """How a preset was used, and how not; a use of which nothing can be told is none."""
    images = "1 image" if batch == 1 else f"up to {batch} images"
    doubtful = {doubt.condition: doubt.reason for doubt in doubts}
    ran = {condition.name for condition in conditions if condition.not_run is None} - doubtful.keys()
    covered = [f"calls of {images}", *(["another order"] if another_order else [])]
    covered += [_WORDS[name] for name in CONDITIONS if name in ran]
    reasons = {condition.name: condition.not_run for condition in conditions} | doubtful
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
    rounding turns over one item in so many, and which one it is differs between any two arms. Bounds are at the level
    of all tests of all conditions together, so that a dozen items are no loss by chance.
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
            strict = margins.stricter(_BOUNDS * len(condition.fidelity) * len(CONDITIONS))
            floor = compare_with_floor(amplified, distances.to_baseline, strict)
            if floor is not None and contradiction([floor], strict) is not None:
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
        noise = compare_with_seed_noise(distances, margins, ways=len(CONDITIONS))
        if noise is not None and noise.outcome is Outcome.FAILED:
            return (
                f"{where} the distance to baseline in {noise.metric} is {noise.median:.2f} of the seed noise at the "
                f"median and {noise.p90:.2f} at the 90th percentile of {noise.n} items."
            )
    if not rounding_only:
        return None
    tails = [compare_tail(_amplified(distances, condition.name), margins) for distances in condition.fidelity]
    far = tail_sentence([tail for tail in tails if tail is not None], margins.stricter(len(CONDITIONS)))
    return None if far is None else f"{where}, {far}"


_BOUNDS = 2
"""By which `compare_with_floor` finds a distance beyond the limit: of the mean, and of the middle item."""


def doubt_in_condition(
    condition: ConditionEvidence, usual: Mapping[str, FidelityDistances], margins: Margins, *, rounding_only: bool
) -> Doubt | None:
    """What cannot be told of a condition in which no loss was found; None where its outputs show that there is none.

    With `rounding_only` they have to be as close to baseline as rounding brings them, in every metric; else within the
    noise of seeds. Both are shown by bounds; or no item is farther, compared with its own `usual` outputs (by metric),
    than the bounds of all usual outputs leave room for: few items give no bound of a high quantile of their own.
    """
    if condition.identical or condition.not_run is not None:
        return None
    if rounding_only:
        return _doubt_of_floor(condition, usual, margins)
    doubts, compared = [], False
    for distances in condition.fidelity:
        noise = compare_with_seed_noise(distances, margins, ways=len(CONDITIONS))
        if noise is None or noise.outcome is Outcome.INSENSITIVE:
            continue
        compared = True
        if noise.outcome is Outcome.PASSED or _is_as_usual(distances, usual.get(distances.metric), margins):
            continue
        doubts.append(Doubt(condition.name, noise.n, needed_within_seed_noise(distances, margins)))
    if not compared:
        return Doubt(condition.name, max((len(of.to_baseline) for of in condition.fidelity), default=0))
    return _hardest(doubts)


def _is_as_usual(distances: FidelityDistances, usual: FidelityDistances | None, margins: Margins) -> bool:
    """Whether the bounds of seed noise of all usual outputs hold if each is farther by as much as the worst here."""
    if usual is None:
        return False
    shared = distances.to_baseline.keys() & usual.to_baseline.keys() & distances.between_seeds.keys()
    here, there = (seed_noise_ratios(_of_items(of, shared)) for of in (distances, usual))
    farther = _farthest(here, there, margins)
    noise = compare_with_seed_noise(usual, margins)
    return (
        noise is not None
        and farther * noise.median_upper < margins.seed_noise.median
        and farther * noise.p90_upper < margins.seed_noise.p90
    )


def _is_rounded_as_usual(distances: FidelityDistances, usual: FidelityDistances | None, margins: Margins) -> bool:
    """As `_is_as_usual`, with the bounds of the floor."""
    floor = None if usual is None else compare_with_floor(usual, usual.to_baseline, margins)
    if usual is None or floor is None or floor.outcome is not Outcome.PASSED:
        return False
    shared = distances.to_baseline.keys() & usual.to_baseline.keys()
    here, there = (item_means(_of_items(of, shared).to_baseline) for of in (distances, usual))
    farther = _farthest(here, there, margins)
    return farther * max(floor.ratio.upper, floor.median_ratio.upper) <= margins.floor.ratio


def _of_items(distances: FidelityDistances, items: Set[str]) -> FidelityDistances:
    return replace(distances, to_baseline={item: distances.to_baseline[item] for item in items})


def _farthest(here: Array, usual: Array, margins: Margins) -> float:
    """By how much the worst item is farther than usual, 1 at least; infinite with too few items to say so."""
    if len(here) != len(usual) or len(here) < margins.floor.min_items:
        return math.inf
    return max(1.0, float(divided(here, usual).max()))


def _doubt_of_floor(
    condition: ConditionEvidence, usual: Mapping[str, FidelityDistances], margins: Margins
) -> Doubt | None:
    doubts, compared = [], False
    for distances in condition.fidelity:
        amplified = _amplified(distances, condition.name)
        comparison = compare_with_floor(amplified, distances.to_baseline, margins)
        if comparison is None:
            continue
        compared = True
        if comparison.outcome is Outcome.PASSED or _is_rounded_as_usual(
            distances, usual.get(distances.metric), margins
        ):
            continue
        doubts.append(Doubt(condition.name, comparison.n, _needed_within_floor(comparison, margins)))
    return _hardest(doubts) if compared else Doubt(condition.name, 0)


def _needed_within_floor(comparison: FloorComparison, margins: Margins) -> int | None:
    """Items with which the bounds would be within the limit: bounds of logarithms narrow with the root of their
    number."""
    counts = [margins.floor.min_items]
    for ratio in (comparison.ratio, comparison.median_ratio):
        if not 0 < ratio.value < margins.floor.ratio or not math.isfinite(ratio.upper):
            return None
        width, room = math.log(ratio.upper / ratio.value), math.log(margins.floor.ratio / ratio.value)
        counts.append(math.ceil(comparison.n * (width / room) ** 2))
    return max(counts)


def _hardest(doubts: Sequence[Doubt]) -> Doubt | None:
    """The one that needs the most items."""
    return max(doubts, key=lambda doubt: math.inf if doubt.needed is None else doubt.needed, default=None)


def _amplified(distances: FidelityDistances, name: Condition) -> FidelityDistances:
    factor = AMPLIFICATION[name]
    floors = {
        arm: {item: [factor * value for value in values] for item, values in by_item.items()}
        for arm, by_item in distances.floors.items()
    }
    return replace(distances, floors=floors)
