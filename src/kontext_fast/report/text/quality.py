"""How the numbers, verdicts and trade-offs of a verification are worded."""

from __future__ import annotations

from collections.abc import Sequence

from kontext_fast.analysis import format as fmt
from kontext_fast.metrics.base import Metric, discover
from kontext_fast.verify.analysis import VerificationAnalysis
from kontext_fast.verify.comparisons import Outcome
from kontext_fast.verify.frontier import Frontier, FrontierPoint, quality_of_fewer_steps
from kontext_fast.verify.verdict import Level

LEVELS = {
    Level.IDENTICAL: "every output is bit-identical to baseline's",
    Level.EQUIVALENT: "as close to baseline as a second run of baseline that differs in rounding only",
    Level.NON_INFERIOR: "no loss beyond margins that were fixed before the run, and within seed noise",
    Level.LOSS: "a loss was measured, with its size, or single outputs are faults",
    Level.NOT_MEASURED: "no metric that can detect a loss was measured",
    Level.CANNOT_TELL: "too few items for the margins",
}


def metric_class(name: str) -> type[Metric] | None:
    """None for a metric that this version does not have."""
    return discover().get(name)


def title(metric: str) -> str:
    known = metric_class(metric)
    return known.title if known else metric


def change(metric: str, value: float) -> str:
    """A difference of scores, signed: in percentage points where scores are yes or no."""
    known = metric_class(metric)
    return fmt.points(value) if known and known.bounded else f"{value:+.3g}"


def times(ratio: float) -> str:
    """A ratio of distances as `0.82x`."""
    return f"{ratio:.2f}x" if ratio < 100 else (f"{ratio:.0f}x" if ratio < 10_000 else "over 10000x")


def level_name(level: Level) -> str:
    """`L1 numerically equivalent`."""
    return level.meaning if level.value == level.meaning else f"{level.value} {level.meaning}"


def answer(outcome: Outcome) -> str:
    return {
        Outcome.PASSED: "within",
        Outcome.FAILED: "beyond",
        Outcome.UNDECIDED: "undecided",
        Outcome.INSENSITIVE: "rounding may exceed it",
    }[outcome]


def finding(analysis: VerificationAnalysis) -> str:
    """What the verification says, in one sentence per kind of verdict."""
    by_level: dict[Level, list[str]] = {}
    for preset in analysis.presets:
        by_level.setdefault(preset.verdict.level, []).append(preset.preset)
    sentences = [f"{joined(names)}: {level_name(level)}." for level, names in by_level.items()]
    return " ".join(sentences) or "No preset was verified."


def computed_share(steps: Sequence[Sequence[str]]) -> str:
    """Steps of a call that ran the transformer, on average."""
    if not steps:
        return fmt.NOT_MEASURED
    computed = [sum(kind != "skipped" for kind in of_call) for of_call in steps]
    return f"{sum(computed) / len(computed):.1f} of {max(map(len, steps))}"


def joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


AHEAD = "ahead of fewer steps"
BEHIND = "behind fewer steps"
ALIKE = "indistinguishable from fewer steps with these items"
MIXED = "ahead of fewer steps in one metric and behind in another"
SLOWER = "no faster than baseline"
BEYOND = "faster than every step count that was tried"


def standing(frontier: Frontier, point: FrontierPoint) -> str | None:
    """Where a preset stands against the steps that fit into its time; None where that was not measured.

    A difference counts where the steps' mean lies outside of the preset's bounds.
    """
    (baseline,) = frontier.of("baseline")
    if point.edit_s is None or baseline.edit_s is None or not point.changes:
        return None
    if point.edit_s >= baseline.edit_s:
        return SLOWER
    ahead = behind = False
    for metric, change in point.changes.items():
        steps = quality_of_fewer_steps(frontier, metric, point.edit_s)
        if steps is None:
            return BEYOND
        ahead |= change.lower > steps
        behind |= change.upper < steps
    if ahead and behind:
        return MIXED
    return AHEAD if ahead else BEHIND if behind else ALIKE


def frontier_finding(frontier: Frontier) -> str:
    """One sentence per standing, and what was not timed."""
    by_standing: dict[str, list[str]] = {}
    for point in frontier.of("preset"):
        if (word := standing(frontier, point)) is not None:
            by_standing.setdefault(word, []).append(point.name)
    sentences = [f"{joined(names)}: {word}." for word, names in by_standing.items()]
    return " ".join([*sentences, without_time(frontier)]).strip()


def without_time(frontier: Frontier) -> str:
    """Which presets have no time, and why, as sentences."""
    by_reason: dict[str, list[str]] = {}
    for point in frontier.of("preset"):
        if point.no_time is not None:
            by_reason.setdefault(point.no_time.rstrip("."), []).append(point.name)
    return " ".join(f"Not timed: {joined(names)} ({reason})." for reason, names in by_reason.items())


def repeatable(frontier: Frontier) -> str | None:
    """How far baseline's two times are apart, as a sentence; None where it was not timed twice."""
    (baseline,) = frontier.of("baseline")
    if baseline.edit_s is None or frontier.again_s is None:
        return None
    change = frontier.again_s / baseline.edit_s - 1
    return (
        f"Baseline took {fmt.seconds(baseline.edit_s)} at the beginning and {fmt.seconds(frontier.again_s)} at the "
        f"end ({100 * change:+.1f} %): smaller differences of times are noise."
    )
