"""How the numbers of a verification are written, and what its controls and levels are called."""

from __future__ import annotations

from collections.abc import Sequence

from kontext_fast.metrics.base import Metric, discover
from kontext_fast.verify.analysis import PresetVerdict, VerificationAnalysis
from kontext_fast.verify.comparisons import Outcome
from kontext_fast.verify.verdict import Level

LEVELS = {
    Level.IDENTICAL: "every output is bit-identical to baseline's",
    Level.EQUIVALENT: "as close to baseline as rounding alone brings baseline to itself",
    Level.NON_INFERIOR: "no loss beyond margins that were fixed before, and inside the noise of seeds",
    Level.LOSS: "a loss was measured, with its size",
    Level.NOT_MEASURED: "nothing that could see a loss was measured",
    Level.CANNOT_TELL: "too few items for the margins",
}


def metric_class(name: str) -> type[Metric] | None:
    """None for a metric that this version does not have."""
    return discover().get(name)


def title(metric: str) -> str:
    found = metric_class(metric)
    return found.title if found else metric


def change(metric: str, value: float) -> str:
    """A difference of scores, signed: in percentage points where scores are yes or no."""
    found = metric_class(metric)
    return f"{100 * value:+.1f} points" if found and found.bounded else f"{value:+.3g}"


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
        Outcome.BLIND: "rounding reaches it",
    }[outcome]


def finding(found: VerificationAnalysis) -> str:
    """What the verification says, in one sentence per kind of verdict."""
    by_level: dict[Level, list[str]] = {}
    for one in found.presets:
        by_level.setdefault(one.verdict.level, []).append(one.preset)
    sentences = [f"{joined(names)}: {level_name(level)}." for level, names in by_level.items()]
    return " ".join(sentences) or "No preset was verified."


def computed_share(one: PresetVerdict, steps: Sequence[Sequence[str]]) -> str:
    """Steps of a call that ran the transformer, on average."""
    if not steps:
        return "not measured"
    computed = [sum(kind != "skipped" for kind in of_call) for of_call in steps]
    return f"{sum(computed) / len(computed):.1f} of {max(map(len, steps))}"


def joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
