"""The quality verdict on a preset, decided from its distances and differences by item. Pure; knows no torch.

L0 identical; L1 numerically equivalent, as close to baseline as rounding brings it; L2 non-inferior, on every primary
metric and within seed noise; L3 measured loss; L4 not measured; and "cannot tell" where there are too few items. A
difference that was not found does not count as equality: L1 and L2 need bounds within margins that were fixed before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from kontext_fast.records.schema import Condition
from kontext_fast.verify.comparisons import (
    ByItem,
    FidelityDistances,
    FloorComparison,
    MarginComparison,
    Outcome,
    QualityDifferences,
    SeedNoiseComparison,
    compare_with_floor,
    compare_with_margins,
    compare_with_seed_noise,
    far_where_changed,
)
from kontext_fast.verify.conditions import ConditionEvidence, Doubt, doubt_in_condition, loss_in_condition
from kontext_fast.verify.findings import (
    Repeat,
    SignedChange,
    Tail,
    compare_tail,
    contradiction,
    ignored_seeds,
    repeats_sentence,
    signed_changes,
    significant_tail,
    tail_sentence,
)
from kontext_fast.verify.margins import Margins


class Level(StrEnum):
    IDENTICAL = "L0"
    EQUIVALENT = "L1"
    NON_INFERIOR = "L2"
    LOSS = "L3"
    NOT_MEASURED = "L4"
    CANNOT_TELL = "cannot tell"

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]

    @property
    def passes(self) -> bool:
        return self in (Level.IDENTICAL, Level.EQUIVALENT, Level.NON_INFERIOR)


_MEANINGS = {
    Level.IDENTICAL: "identical",
    Level.EQUIVALENT: "numerically equivalent",
    Level.NON_INFERIOR: "non-inferior",
    Level.LOSS: "measured loss",
    Level.NOT_MEASURED: "not measured",
    Level.CANNOT_TELL: "cannot tell",
}


@dataclass(frozen=True)
class Evidence:
    """All measurements on which the verdict on one preset rests."""

    identical: bool
    """All images, and all latents where there are any, by their hashes: this needs no metric."""
    fidelity: tuple[FidelityDistances, ...]
    quality: tuple[QualityDifferences, ...]
    failures: tuple[str, ...] = ()
    """Items on which baseline succeeded and the preset did not, or at the second attempt only."""
    reordered_failures: tuple[str, ...] = ()
    """Items on which the preset succeeded, but not in another order."""
    repeats: tuple[Repeat, ...] = ()
    seed_spreads: ByItem = field(default_factory=dict)
    """Distances of outputs for two seeds over the same distances of baseline."""
    changes: Mapping[str, ByItem] = field(default_factory=dict)
    """Signed changes of the pixels by direction."""
    conditions: tuple[ConditionEvidence, ...] = ()
    declares_rounding: bool = False
    """True where no optimization of the preset declares that it changes more than rounding."""
    insensitive: Mapping[str, str] = field(default_factory=dict)
    """Metrics on which no verdict may rest, and why."""


@dataclass(frozen=True)
class QualityVerdict:
    level: Level
    reason: str
    floor: tuple[FloorComparison, ...] = ()
    seed_noise: tuple[SeedNoiseComparison, ...] = ()
    losses: tuple[MarginComparison, ...] = ()
    tails: tuple[Tail, ...] = ()
    """Outputs far from baseline, by metric."""
    changes: tuple[SignedChange, ...] = ()
    """What changed on average, beside the verdict, which does not rest on it."""
    doubts: tuple[Doubt, ...] = ()
    """Ways of use in which too few items ran to tell; the level is that of all others."""
    lost_in: Condition | None = None
    """The way of use in which a loss was found, where usual calls showed none."""
    usual_level: Level | None = None
    """The level of usual calls where `lost_in` says that another way of use has a loss."""


def decide(evidence: Evidence, margins: Margins) -> QualityVerdict:
    """The verdict. Insensitive metrics are left out; it rests on the others."""
    fidelity = [distances for distances in evidence.fidelity if distances.to_baseline]
    tails = tuple(tail for distances in fidelity if (tail := compare_tail(distances, margins)) is not None)
    verdict = _decide(evidence, margins, fidelity)
    if verdict.level not in (Level.IDENTICAL, Level.LOSS):
        reason = tail_sentence(tails, margins)
        if reason is None and evidence.declares_rounding and contradiction(verdict.floor, margins) is not None:
            reason = f"It declares to change rounding only, and does more. {_largest_ratio(verdict.floor)}."
        if reason is not None:
            verdict = replace(verdict, level=Level.LOSS, reason=reason)
    if verdict.level is not Level.LOSS:
        verdict = _under_conditions(verdict, evidence, margins)
    return replace(verdict, tails=tails, changes=signed_changes(evidence.changes, margins.confidence))


def _under_conditions(verdict: QualityVerdict, evidence: Evidence, margins: Margins) -> QualityVerdict:
    """The verdict with what other ways of use show: a loss there is a loss, and identical means in all of them.

    A way of which few items cannot tell costs no level: the verdict says that it does not hold there.
    """
    rounds = verdict.level in (Level.IDENTICAL, Level.EQUIVALENT)
    conditions = [
        replace(of, fidelity=tuple(by for by in of.fidelity if by.metric not in evidence.insensitive))
        for of in evidence.conditions
        if of.not_run is None
    ]
    for condition in conditions:
        reason = loss_in_condition(condition, margins, rounding_only=rounds or evidence.declares_rounding)
        if reason is not None:
            if not verdict.level.passes:
                return replace(verdict, level=Level.LOSS, reason=reason)
            reason += f" In usual calls it is {verdict.level} {verdict.level.meaning}: {verdict.reason}"
            return replace(verdict, level=Level.LOSS, reason=reason, lost_in=condition.name, usual_level=verdict.level)
    if verdict.level is Level.NOT_MEASURED:
        return verdict
    usual = {distances.metric: distances for distances in evidence.fidelity}
    found = [doubt_in_condition(condition, usual, margins, rounding_only=rounds) for condition in conditions]
    doubts = tuple(doubt for doubt in found if doubt is not None)
    if verdict.level is Level.CANNOT_TELL:
        return replace(verdict, doubts=doubts)
    rounded = [condition for condition in conditions if not condition.identical]
    if verdict.level is Level.IDENTICAL and rounded:
        names = " and ".join(condition.name for condition in rounded)
        if any(doubt.items == 0 for doubt in doubts):
            reason = f"Most outputs are the same, bit for bit, and not those {names}, which no metric compares."
            return replace(verdict, level=Level.CANNOT_TELL, reason=reason)
        reason = f"Every output is the same, bit for bit, but for rounding {names}."
        if doubts:
            reason = f"Every output is the same, bit for bit, but those {names}."
        verdict = replace(verdict, level=Level.EQUIVALENT, reason=reason)
    reason = " ".join([verdict.reason, *(doubt.sentence for doubt in doubts)])
    return replace(verdict, reason=reason, doubts=doubts)


def _decide(evidence: Evidence, margins: Margins, of_preset: Sequence[FidelityDistances]) -> QualityVerdict:
    """The verdict of means, and of outputs that are faults by themselves."""
    fidelity = [distances for distances in of_preset if distances.metric not in evidence.insensitive]
    floor = tuple(
        comparison
        for distances in fidelity
        if (comparison := compare_with_floor(distances, distances.to_baseline, margins)) is not None
    )
    if evidence.failures:
        names = ", ".join(evidence.failures[:3])
        reason = f"It failed on {len(evidence.failures)} items on which baseline succeeded ({names})."
        return QualityVerdict(Level.LOSS, reason, floor)
    if (order_reason := _depends_on_order(evidence, fidelity, margins)) is not None:
        return QualityVerdict(Level.LOSS, order_reason, floor)
    if evidence.repeats:
        return QualityVerdict(Level.LOSS, repeats_sentence(evidence.repeats), floor)
    if (seeds_reason := ignored_seeds(evidence.seed_spreads, margins.confidence)) is not None:
        return QualityVerdict(Level.LOSS, seeds_reason, floor)
    if evidence.identical:
        return QualityVerdict(Level.IDENTICAL, "Every output is the same, bit for bit.", floor)
    if floor and all(comparison.outcome is Outcome.PASSED for comparison in floor):
        reason = f"{_largest_ratio(floor)}, within the limit of {margins.floor.ratio:g}."
        return QualityVerdict(Level.EQUIVALENT, reason, floor)
    return _decide_quality(evidence, margins, fidelity, floor)


def _decide_quality(
    evidence: Evidence,
    margins: Margins,
    fidelity: Sequence[FidelityDistances],
    floor: tuple[FloorComparison, ...],
) -> QualityVerdict:
    beyond = f" {_largest_ratio(floor)}, where the limit is {margins.floor.ratio:g}." if floor else ""
    measured = [
        quality for quality in evidence.quality if quality.metric in margins.primary and len(quality.differences) >= 2
    ]
    sensitive = [quality for quality in measured if quality.metric not in evidence.insensitive]
    if not sensitive:
        names = ", ".join(quality.metric for quality in measured)
        why = f"the primary metrics are insensitive here ({names})" if names else "no primary metric was measured"
        if floor and all(comparison.outcome is not Outcome.FAILED for comparison in floor):
            n, least = min(comparison.n for comparison in floor), margins.floor.min_items
            few = f"{least} items are needed, {n} were used" if n < least else "more items are needed"
            return QualityVerdict(Level.CANNOT_TELL, f"{beyond.strip().rstrip('.')}: {few}; and {why}.", floor)
        return QualityVerdict(Level.NOT_MEASURED, f"Quality is not measured: {why}.{beyond}", floor)
    losses = compare_with_margins(sensitive, margins)
    noise = tuple(
        comparison for distances in fidelity if (comparison := compare_with_seed_noise(distances, margins)) is not None
    )
    usable = [comparison for comparison in noise if comparison.outcome is not Outcome.INSENSITIVE]
    outcomes = [*(loss.outcome for loss in losses), *(comparison.outcome for comparison in usable)]
    if Outcome.FAILED in outcomes:
        return QualityVerdict(Level.LOSS, _loss_sentence(losses, noise, margins), floor, noise, losses)
    if not usable or any(outcome is not Outcome.PASSED for outcome in outcomes):
        return QualityVerdict(Level.CANNOT_TELL, _doubt_sentence(losses, noise), floor, noise, losses)
    sentences = [f"No loss beyond the margins of {', '.join(loss.metric for loss in losses)}."]
    sentences += [_small_loss_sentence(loss) for loss in losses if loss.upper < 0]
    if left_out := [quality.metric for quality in measured if quality.metric in evidence.insensitive]:
        sentences.append(f"Insensitive here and left out: {', '.join(left_out)}.")
    if unused := [comparison.metric for comparison in noise if comparison.outcome is Outcome.INSENSITIVE]:
        sentences.append(f"Not compared with seed noise, whose limit rounding alone may exceed: {', '.join(unused)}.")
    return QualityVerdict(Level.NON_INFERIOR, " ".join(sentences), floor, noise, losses)


def _depends_on_order(evidence: Evidence, fidelity: Sequence[FidelityDistances], margins: Margins) -> str | None:
    """Why the outputs depend on other requests; None where they do not. Rounding may differ with the order, too."""
    if evidence.reordered_failures:
        names = ", ".join(evidence.reordered_failures[:3])
        count = len(evidence.reordered_failures)
        return f"Its outputs depend on other requests: in another order it failed on {count} items ({names})."
    for distances in fidelity:
        comparison = compare_with_floor(distances, distances.reordered, margins)
        if comparison is None:
            continue
        changed = far_where_changed(distances, distances.reordered, margins)
        if changed is not None or max(comparison.ratio.lower, comparison.median_ratio.lower) > margins.floor.ratio:
            ratio = max(comparison.ratio.value, changed.median_ratio.value if changed is not None else 0.0)
            return (
                f"Its outputs depend on other requests: in another order {distances.metric} differs by {_times(ratio)} "
                "the floor."
            )
    tails = [compare_tail(replace(distances, to_baseline=distances.reordered), margins) for distances in fidelity]
    far = significant_tail([tail for tail in tails if tail is not None], margins)
    if far is None:
        return None
    names = ", ".join(dict.fromkeys(far.beyond[:3]))
    return (
        f"Its outputs depend on other requests: in another order {len(far.beyond)} of {far.n} differ by more than all "
        f"noise of their item in {far.metric} ({names})."
    )


def _largest_ratio(floor: Sequence[FloorComparison]) -> str:
    """Of all ratios to the floor, of the mean and of the median item, the one with the highest bound."""
    ratios = [
        (comparison, place, ratio)
        for comparison in floor
        for place, ratio in (("", comparison.ratio), (" at the median", comparison.median_ratio))
    ]
    largest, place, ratio = max(ratios, key=lambda entry: entry[2].upper)
    return (
        f"The distance to baseline is {_times(ratio.value)} the floor ({largest.arm}) in {largest.metric}{place}, "
        f"with an upper bound of {_times(ratio.upper)}"
    )


def _loss_sentence(losses: Sequence[MarginComparison], noise: Sequence[SeedNoiseComparison], margins: Margins) -> str:
    parts = [
        f"the loss in {loss.metric} is {-loss.mean:.3g} (at least {-loss.upper:.3g}, at most {-loss.lower:.3g}, "
        f"with a margin of {loss.margin:g})"
        for loss in losses
        if loss.outcome is Outcome.FAILED
    ]
    parts += [
        f"in {comparison.metric} the distance to baseline is {comparison.median:.2f} of the seed noise at the median "
        f"and {comparison.p90:.2f} at the 90th percentile (limits {margins.seed_noise.median:g} and "
        f"{margins.seed_noise.p90:g})"
        for comparison in noise
        if comparison.outcome is Outcome.FAILED
    ]
    return _sentence(parts)


def _small_loss_sentence(loss: MarginComparison) -> str:
    return (
        f"A loss within the margin was measured in {loss.metric}: {-loss.mean:.3g}, at most {-loss.lower:.3g}, "
        f"with a margin of {loss.margin:g}."
    )


def _doubt_sentence(losses: Sequence[MarginComparison], noise: Sequence[SeedNoiseComparison]) -> str:
    parts = [
        f"the change in {loss.metric} is {loss.mean:+.3g} and its bound of {loss.lower:+.3g} is beyond "
        f"{-loss.margin:g}; "
        + (
            f"about {loss.needed} items are needed, {loss.n} were used"
            if loss.needed > loss.n
            else f"{loss.n} items were used"
        )
        for loss in losses
        if loss.outcome is Outcome.UNDECIDED
    ]
    parts += [
        f"in {comparison.metric} there are too few items to compare the distance to baseline with seed noise"
        for comparison in noise
        if comparison.outcome is Outcome.UNDECIDED
    ]
    if not noise:
        parts.append("seed noise was not measured")
    elif all(comparison.outcome is Outcome.INSENSITIVE for comparison in noise):
        names = " and ".join(comparison.metric for comparison in noise)
        parts.append(f"rounding alone may exceed the seed-noise limit in {names}")
    return _sentence(parts)


def _sentence(parts: Sequence[str]) -> str:
    sentence = "; ".join(parts)
    return sentence[0].upper() + sentence[1:] + "."


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times" if ratio < 1000 else "over 1000 times"
