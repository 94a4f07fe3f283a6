"""What may be said of a preset's outputs, computed from distances and differences per item. Pure; knows no torch.

L0 identical; L1 numerically equivalent, as close to baseline as rounding brings it; L2 non-inferior, on every primary
metric and inside the noise of seeds; L3 measured loss; L4 not measured; and "cannot tell" where items are too few.
That no difference was found is never taken for equality: L1 and L2 need bounds within margins that were fixed before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from kontext_fast.verify.comparisons import (
    Fidelity,
    FloorFinding,
    LossFinding,
    NoiseFinding,
    Outcome,
    Quality,
    against_floor,
    against_margins,
    against_seeds,
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
    """All that the verdict on one preset rests on."""

    identical: bool
    """All images, and all latents where there are any; this rests on hashes, so no metric has to see it."""
    fidelity: tuple[Fidelity, ...]
    quality: tuple[Quality, ...]
    failures: tuple[str, ...] = ()
    """Items that baseline made and the preset did not, or at the second attempt only."""
    reordered_failures: tuple[str, ...] = ()
    """Items that the preset made, and did not in another order."""
    blind: Mapping[str, str] = field(default_factory=dict)
    """Metrics that no verdict may rest on, and why."""


@dataclass(frozen=True)
class Verdict:
    level: Level
    reason: str
    floor: tuple[FloorFinding, ...] = ()
    noise: tuple[NoiseFinding, ...] = ()
    losses: tuple[LossFinding, ...] = ()


def decide(evidence: Evidence, margins: Margins) -> Verdict:
    """The verdict. Blind metrics are left out, and what is left has to carry it."""
    fidelity = [one for one in evidence.fidelity if one.metric not in evidence.blind and one.to_baseline]
    floor = tuple(finding for one in fidelity if (finding := against_floor(one, one.to_baseline, margins)) is not None)
    if evidence.failures:
        names = ", ".join(evidence.failures[:3])
        return Verdict(Level.LOSS, f"It failed on {len(evidence.failures)} items that baseline made ({names}).", floor)
    if (reason := _depends_on_order(evidence, fidelity, margins)) is not None:
        return Verdict(Level.LOSS, reason, floor)
    if evidence.identical:
        return Verdict(Level.IDENTICAL, "Every output is the same, bit for bit.", floor)
    if floor and all(finding.outcome is Outcome.PASSED for finding in floor):
        return Verdict(Level.EQUIVALENT, f"{_farthest(floor)}, within the limit of {margins.floor.ratio:g}.", floor)
    return _about_quality(evidence, margins, fidelity, floor)


def _about_quality(
    evidence: Evidence, margins: Margins, fidelity: Sequence[Fidelity], floor: tuple[FloorFinding, ...]
) -> Verdict:
    beyond = f" {_farthest(floor)}, where the limit is {margins.floor.ratio:g}." if floor else ""
    measured = [one for one in evidence.quality if one.metric in margins.primary and len(one.differences) >= 2]
    usable = [one for one in measured if one.metric not in evidence.blind]
    if not usable:
        names = ", ".join(one.metric for one in measured)
        why = f"the primary metrics are blind here ({names})" if names else "no primary metric was measured"
        if floor and all(finding.outcome is not Outcome.FAILED for finding in floor):
            n, least = min(finding.n for finding in floor), margins.floor.min_items
            few = f"it takes {least} items to say so, {n} were used" if n < least else "more items would tell"
            return Verdict(Level.CANNOT_TELL, f"{beyond.strip().rstrip('.')}: {few}; and {why}.", floor)
        return Verdict(Level.NOT_MEASURED, f"Quality is not measured: {why}.{beyond}", floor)
    losses = against_margins(usable, margins)
    noise = tuple(finding for one in fidelity if (finding := against_seeds(one, margins)) is not None)
    telling = [finding for finding in noise if finding.outcome is not Outcome.BLIND]
    outcomes = [*(finding.outcome for finding in losses), *(finding.outcome for finding in telling)]
    if Outcome.FAILED in outcomes:
        return Verdict(Level.LOSS, _loss_sentence(losses, noise, margins), floor, noise, losses)
    if telling and all(outcome is Outcome.PASSED for outcome in outcomes):
        names = ", ".join(finding.metric for finding in losses)
        left_out = [one.metric for one in measured if one.metric in evidence.blind]
        caveat = f" Blind here and left out: {', '.join(left_out)}." if left_out else ""
        drowned = [finding.metric for finding in noise if finding.outcome is Outcome.BLIND]
        if drowned:
            caveat += f" Not held against the noise of seeds, which rounding alone reaches there: {', '.join(drowned)}."
        seen = "".join(f" {_inside(one)}" for one in losses if one.upper < 0)
        return Verdict(
            Level.NON_INFERIOR, f"No loss beyond the margins of {names}.{seen}{caveat}", floor, noise, losses
        )
    return Verdict(Level.CANNOT_TELL, _doubt_sentence(losses, noise, margins), floor, noise, losses)


def _depends_on_order(evidence: Evidence, fidelity: Iterable[Fidelity], margins: Margins) -> str | None:
    if evidence.reordered_failures:
        names = ", ".join(evidence.reordered_failures[:3])
        count = len(evidence.reordered_failures)
        return f"Its outputs depend on other requests: in another order it failed on {count} items ({names})."
    for one in fidelity:
        finding = against_floor(one, one.reordered, margins)
        if finding is not None and finding.outcome is Outcome.FAILED:
            return (
                f"Its outputs depend on other requests: in another order {one.metric} differs by "
                f"{_times(finding.ratio.value)} the floor."
            )
    return None


def _farthest(floor: Sequence[FloorFinding]) -> str:
    """Of all ratios to the floor, in the mean and of the median item, the one with the highest bound."""
    ratios = [(one, what, ratio) for one in floor for what, ratio in (("", one.ratio), (" at the median", one.usual))]
    worst, what, ratio = max(ratios, key=lambda found: found[2].upper)
    return (
        f"The distance to baseline is {_times(ratio.value)} the floor ({worst.arm}) in {worst.metric}{what}, "
        f"with an upper bound of {_times(ratio.upper)}"
    )


def _loss_sentence(losses: Sequence[LossFinding], noise: Sequence[NoiseFinding], margins: Margins) -> str:
    parts = [
        f"the loss in {one.metric} is {-one.mean:.3g} (at least {-one.upper:.3g}, at most {-one.lower:.3g}, "
        f"with a margin of {one.margin:g})"
        for one in losses
        if one.outcome is Outcome.FAILED
    ]
    parts += [
        f"in {one.metric} the outputs are {one.median:.2f} of the noise of seeds from baseline at the median and "
        f"{one.p90:.2f} at the 90th percentile (limits {margins.seed_noise.median:g} and {margins.seed_noise.p90:g})"
        for one in noise
        if one.outcome is Outcome.FAILED
    ]
    sentence = "; ".join(parts)
    return sentence[0].upper() + sentence[1:] + "."


def _inside(one: LossFinding) -> str:
    """A loss that is there, and small."""
    return (
        f"A loss inside of the margin is seen in {one.metric}: {-one.mean:.3g}, at most {-one.lower:.3g}, "
        f"where the margin is {one.margin:g}."
    )


def _doubt_sentence(losses: Sequence[LossFinding], noise: Sequence[NoiseFinding], margins: Margins) -> str:
    parts = [
        f"the change in {one.metric} is {one.mean:+.3g} and its bound of {one.lower:+.3g} is beyond {-one.margin:g}; "
        + (
            f"about {one.needed} items would tell, {one.n} were used"
            if one.needed > one.n
            else f"{one.n} items were used"
        )
        for one in losses
        if one.outcome is Outcome.UNDECIDED
    ]
    parts += [
        f"in {one.metric} the items are too few to hold the outputs against the noise of seeds"
        for one in noise
        if one.outcome is Outcome.UNDECIDED
    ]
    if not noise:
        parts.append("the noise of seeds was not measured")
    elif all(one.outcome is Outcome.BLIND for one in noise):
        parts.append("rounding alone reaches the noise of seeds in " + " and ".join(one.metric for one in noise))
    sentence = "; ".join(parts)
    return sentence[0].upper() + sentence[1:] + "."


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times" if ratio < 1000 else "over 1000 times"
