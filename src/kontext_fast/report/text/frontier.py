"""What a frontier says of each preset, in words computed from its points."""

from __future__ import annotations

from kontext_fast.analysis import format as fmt
from kontext_fast.report.text.quality import joined
from kontext_fast.verify.frontier import Frontier, Point, quality_of_fewer_steps

AHEAD = "ahead of fewer steps"
BEHIND = "behind fewer steps"
ALIKE = "not to be told from fewer steps with these items"
MIXED = "ahead of fewer steps in one metric and behind in another"
SLOWER = "no faster than baseline"
BEYOND = "faster than any number of steps that was tried"


def standing(found: Frontier, point: Point) -> str | None:
    """Where a preset stands against the steps that fit into its time; None where that was not measured.

    A difference counts where the steps' mean lies outside of the preset's bounds.
    """
    (baseline,) = found.of("baseline")
    if point.edit_s is None or baseline.edit_s is None or not point.changes:
        return None
    if point.edit_s >= baseline.edit_s:
        return SLOWER
    ahead = behind = False
    for metric, change in point.changes.items():
        steps = quality_of_fewer_steps(found, metric, point.edit_s)
        if steps is None:
            return BEYOND
        ahead |= change.lower > steps
        behind |= change.upper < steps
    if ahead and behind:
        return MIXED
    return AHEAD if ahead else BEHIND if behind else ALIKE


def finding(found: Frontier) -> str:
    """One sentence per standing, and what was not timed."""
    by_standing: dict[str, list[str]] = {}
    for point in found.of("preset"):
        if (said := standing(found, point)) is not None:
            by_standing.setdefault(said, []).append(point.name)
    sentences = [f"{joined(names)}: {said}." for said, names in by_standing.items()]
    return " ".join([*sentences, without_time(found)]).strip()


def without_time(found: Frontier) -> str:
    """Which presets have no time, and why, as sentences."""
    by_reason: dict[str, list[str]] = {}
    for point in found.of("preset"):
        if point.no_time is not None:
            by_reason.setdefault(point.no_time.rstrip("."), []).append(point.name)
    return " ".join(f"Not timed: {joined(names)} ({reason})." for reason, names in by_reason.items())


def repeatable(found: Frontier) -> str | None:
    """How far baseline's two times are apart, as a sentence; None where it was not timed twice."""
    (baseline,) = found.of("baseline")
    if baseline.edit_s is None or found.again_s is None:
        return None
    apart = found.again_s / baseline.edit_s - 1
    return (
        f"Baseline took {fmt.seconds(baseline.edit_s)} at the beginning and {fmt.seconds(found.again_s)} at the "
        f"end ({100 * apart:+.1f} %): no smaller difference of times means anything here."
    )
