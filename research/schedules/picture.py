"""The statistics of a study of schedules, its table and its chart, from the file that `study.py` wrote."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kontext_fast.report.plots.style import COLORS, GRAY, GRID, INK, MUTED, new_figure, png
from kontext_fast.stats.intervals import Estimate, acceptance, bootstrap_mean, paired_difference
from research.schedules.candidates import CACHE, CACHE_DIT, FEWER, FULL, STEPS

REFERENCE, BOTH = "reference_reuse", "both"
"""Families of an earlier study, which can still be drawn; see docs/research-log.md."""

Verdict = Literal["better", "no difference seen", "worse", "not measured"]
ByItem = dict[str, float]

_COLOR = {
    FULL: INK, FEWER: GRAY, CACHE: COLORS[1], CACHE_DIT: COLORS[5], STEPS: COLORS[0], REFERENCE: COLORS[2],
    BOTH: COLORS[3],
}  # fmt: skip
_MARK = {FULL: "*", FEWER: "o", CACHE: "s", CACHE_DIT: "P", STEPS: "^", REFERENCE: "D", BOTH: "v"}


@dataclass(frozen=True)
class Finding:
    """One candidate, compared with the fewest steps that take at least as much work."""

    family: str
    name: str
    work: float
    """As a share of the full run's work."""
    accepted_open: Estimate | None
    accepted_single: Estimate | None
    distance: float
    """Mean over items of the root mean square error to the full run's images, in units of the pixel range."""
    latent_distance: float
    rival: str | None
    """The fewest steps that take at least as much work."""
    open_against_rival: Estimate | None
    """Accepted share of open edits, minus the rival's."""
    all_against_rival: Estimate | None
    distance_against_rival: Estimate | None
    open_against_full: Estimate | None
    verdict: Verdict
    on_front: bool = False
    """Whether no candidate with less work is both accepted as often and as near to the full run."""


def write_all(lines: Sequence[dict[str, Any]], folder: Path) -> str:
    """Write `pareto.json`, `pareto.md` and `pareto.png` into `folder` and return the table."""
    all_findings = findings(lines)
    setup = lines[0]["setup"]
    content = {"setup": setup, "findings": [asdict(finding) for finding in all_findings]}
    (folder / "pareto.json").write_text(json.dumps(content, indent=1))
    text = table(all_findings, setup)
    (folder / "pareto.md").write_text(text + "\n")
    (folder / "pareto.png").write_bytes(picture(all_findings, setup))
    return text


def findings(lines: Sequence[dict[str, Any]]) -> list[Finding]:
    """The findings of a study, sorted by work. `lines` are those of `study.jsonl`."""
    runs = {(line["candidate"]["family"], line["candidate"]["name"]): line["rows"] for line in lines[1:]}
    full = next((rows for (family, _), rows in runs.items() if family == FULL), None)
    if full is None:
        raise SystemExit("The study has no full run yet; run it without --draw.")
    whole = _mean(full, "work")
    fewer = sorted((_mean(rows, "work"), name, rows) for (family, name), rows in runs.items() if family == FEWER)
    unplaced = [_finding(key, rows, full, whole, fewer) for key, rows in runs.items()]
    unplaced.sort(key=lambda finding: (finding.work, finding.distance))
    return [replace(finding, on_front=_is_on_front(finding, unplaced)) for finding in unplaced]


def _finding(
    key: tuple[str, str],
    rows: list[dict[str, Any]],
    full: list[dict[str, Any]],
    whole: float,
    fewer: list[tuple[float, str, list[dict[str, Any]]]],
) -> Finding:
    family, name = key
    work = _mean(rows, "work")
    ladder = [*fewer, (whole, "the full run", full)]
    # The tolerance is for sums in another order.
    rival = next((step for step in ladder if step[0] >= work * (1 - 1e-9)), None)
    if family in (FULL, FEWER):
        rival = None
    other = rival[2] if rival else None
    opened = None if other is None else paired_difference(_accepted(other, True), _accepted(rows, True))
    both = None if other is None else paired_difference(_accepted(other, None), _accepted(rows, None))
    distance = None if other is None else _distance_difference(other, rows)
    return Finding(
        family,
        name,
        work / whole,
        acceptance(_accepted(rows, True)),
        acceptance(_accepted(rows, False)),
        _mean(rows, "pixel_distance"),
        _mean(rows, "latent_distance"),
        rival[1] if rival else None,
        opened,
        both,
        distance,
        None if family == FULL else paired_difference(_accepted(full, True), _accepted(rows, True)),
        _verdict(opened, both, distance),
    )


def _verdict(opened: Estimate | None, both: Estimate | None, distance: Estimate | None) -> Verdict:
    """Whether a technique is better than fewer steps: a higher share of open edits accepted, or a smaller distance.

    A smaller distance does not compensate for rejected edits, nor do open edits for those with a single answer.
    """
    intervals = [estimate.interval if estimate else None for estimate in (opened, both, distance)]
    if any(interval is None for interval in intervals):
        return "not measured"
    (open_low, open_high), (_, both_high), (near, far) = (interval or (0.0, 0.0) for interval in intervals)
    if open_high < 0 or both_high < 0:
        return "worse"
    if open_low > 0 or far < 0:
        return "better"
    return "worse" if near > 0 else "no difference seen"


def _is_on_front(finding: Finding, others: Sequence[Finding]) -> bool:
    def dominates(other: Finding) -> bool:
        nearer = other.distance <= finding.distance
        return other.work < finding.work and _accepted_share(other) >= _accepted_share(finding) and nearer

    return not any(dominates(other) for other in others)


def _accepted_share(finding: Finding) -> float:
    return finding.accepted_open.value if finding.accepted_open else 0.0


def _by_item(rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> ByItem:
    values = defaultdict(list)
    for row in rows:
        values[row["item"]].append(value(row))
    return {item: sum(of) / len(of) for item, of in values.items()}


def _accepted(rows: list[dict[str, Any]], is_open: bool | None) -> ByItem:
    chosen = [row for row in rows if is_open is None or row["open"] == is_open]
    return _by_item(chosen, lambda row: float(row["done"] and row["kept"]))


def _distance_difference(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Estimate:
    first, second = (_by_item(rows, lambda row: float(row["pixel_distance"])) for rows in (before, after))
    return bootstrap_mean([second[item] - first[item] for item in sorted(first)])


def _mean(rows: list[dict[str, Any]], column: str) -> float:
    return sum(row[column] for row in rows) / len(rows)


def _percent(estimate: Estimate | None, digits: int = 1) -> str:
    if estimate is None:
        return ""
    if estimate.interval is None:
        return f"{estimate.value:.{digits}%}"
    low, high = estimate.interval
    return f"{estimate.value:.{digits}%} ({low:.0%} to {high:.0%})"


def _signed(estimate: Estimate | None) -> str:
    if estimate is None or estimate.interval is None:
        return "" if estimate is None else f"{estimate.value:+.1%}"
    low, high = estimate.interval
    return f"{estimate.value:+.1%} ({low:+.1%} to {high:+.1%})"


def table(findings: Sequence[Finding], setup: dict[str, Any]) -> str:
    """Markdown, by work."""
    lines = [
        f"{setup['items']} items, {setup['seeds']} seeds, {setup['steps']} steps in full, checkpoint "
        f"{setup['checkpoint']}, engine in {setup['precision']}, on {setup['device']}. Work is that of a full-size "
        "1024x1024 edit. Differences are to the fewest steps that take no less work.",
        "",
        "| work | technique | | open edits accepted | one answer accepted | distance | rival | open edits, difference "
        "| distance, difference | against fewer steps | front |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for finding in findings:
        difference = finding.distance_against_rival
        interval = None if difference is None else difference.interval
        span = "" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"
        cells = (
            f"{finding.work:.1%}", finding.family, finding.name,
            _percent(finding.accepted_open), _percent(finding.accepted_single),
            f"{finding.distance:.4f}", finding.rival or "", _signed(finding.open_against_rival), span,
            finding.verdict if finding.rival else "", "yes" if finding.on_front else "",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(findings: Sequence[Finding], setup: dict[str, Any]) -> bytes:
    """Three panels over work: open edits, edits with one answer, and distance to the full run."""
    figure = new_figure(13.5)
    figure.text(
        0.06, 0.972, "What each technique costs, against fewer steps", fontsize=16, fontweight="bold", color=INK
    )
    origin = (
        f"{setup['checkpoint']}, {setup['items']} items x {setup['seeds']} seeds; work of a full-size edit as a share "
        f"of {setup['steps']} full steps; filled: better than fewer steps at the same work; whiskers: 95 %"
    )
    figure.text(0.06, 0.953, origin, fontsize=10.5, color=MUTED)
    panels: tuple[tuple[str, Callable[[Finding], Estimate | None]], ...] = (
        ("open edits accepted", lambda finding: finding.accepted_open),
        ("edits with one answer accepted", lambda finding: finding.accepted_single),
        ("distance to the full run (RMS of 1)", lambda finding: Estimate(finding.distance, None, 1)),
    )
    for place, (what, value) in enumerate(panels):
        axes = figure.add_axes((0.08, 0.655 - 0.302 * place, 0.89, 0.25))
        _panel(axes, findings, value)
        axes.set_title(what, loc="left", fontsize=12, color=INK)
        if place == len(panels) - 1:
            axes.set_xlabel("work, share of the full run (logarithmic)", fontsize=11, color=MUTED)
            axes.set_ylim(bottom=0)
    _legend(figure, findings)
    return png(figure)


def _panel(axes: Any, findings: Sequence[Finding], value: Callable[[Finding], Estimate | None]) -> None:
    for finding in findings:
        estimate = value(finding)
        if estimate is None:
            continue
        color = _COLOR[finding.family]
        filled = finding.verdict == "better" or finding.family in (FULL, FEWER)
        if estimate.interval is not None and finding.family in (FULL, FEWER):
            axes.plot([finding.work] * 2, estimate.interval, color=color, linewidth=1.0, alpha=0.7, zorder=1)
        axes.plot(
            finding.work, estimate.value, _MARK[finding.family],
            color=color, markersize=11 if finding.family == FULL else 6.5,
            markerfacecolor=color if filled else "white", markeredgewidth=1.2, zorder=3,
        )  # fmt: skip
    ladder = [(finding.work, value(finding)) for finding in findings if finding.family in (FULL, FEWER)]
    axes.plot(
        [work for work, _ in ladder],
        [estimate.value if estimate else None for _, estimate in ladder],
        color=GRAY,
        linewidth=1.2,
    )
    axes.set_xscale("log")
    ticks = [0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0]
    axes.set_xlim(0.85 * min(finding.work for finding in findings), 1.1)
    shown = [tick for tick in ticks if tick >= axes.get_xlim()[0]]
    axes.set_xticks(shown, labels=[f"{tick:.0%}" for tick in shown])
    axes.set_xticks([], minor=True)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10, colors=MUTED, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _legend(figure: Any, findings: Sequence[Finding]) -> None:
    from matplotlib.lines import Line2D

    families = [family for family in _COLOR if any(finding.family == family for finding in findings)]
    handles = [
        Line2D([], [], color=_COLOR[family], marker=_MARK[family], linestyle="none", label=family)
        for family in families
    ]
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.05, 0.948), ncols=7, frameon=False, fontsize=10.5
    )
