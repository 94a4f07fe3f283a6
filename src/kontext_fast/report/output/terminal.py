"""Results for a terminal: the headline in 80 columns, the cost of every preset, and the verdicts of a verification.

Names, labels and reasons come from records, so they are printed as plain text and never read as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.names import group_name
from kontext_fast.analysis.rows import REFERENCE, Row
from kontext_fast.cost import Billing
from kontext_fast.cost.analysis import GroupCost, PresetCost
from kontext_fast.cost.billing import Cost, Demand
from kontext_fast.cost.capacity import PresetCapacity
from kontext_fast.report.text.phrases import of_other_plans, speed_finding
from kontext_fast.report.text.quality import frontier_finding, level_name
from kontext_fast.stats.intervals import Estimate
from kontext_fast.verify.analysis import VerificationAnalysis
from kontext_fast.verify.findings import changes_sentence
from kontext_fast.verify.frontier import Frontier
from kontext_fast.verify.metric_rows import COLUMNS, items_to_decide, metric_rows

if TYPE_CHECKING:
    from rich.console import Console

HEADLINE_COLUMNS = ("preset", "time", "vs baseline", "steps", "judge", "memory")
CAPACITY_COLUMNS = ("preset", "cards", "load", "p95", "by use/month", "always on", "reserved")
COST_COLUMNS = ("preset", "per image", "per month", "saved/month", "GPUs")


def print_headline(groups: Iterable[AnalyzedGroup], console: Console) -> None:
    """Print one table, its labels, its failures and its finding per group of comparable runs."""
    for group in groups:
        labels = list(dict.fromkeys(label for row in group.rows for label in row.labels))
        checkpoint = f"{group.checkpoint.name}, " if group.checkpoint else ""
        rows = [_headline_cells(row, labels) for row in group.rows]
        _print_table(checkpoint + group_name(group), HEADLINE_COLUMNS, rows, console, least_width=len(REFERENCE))
        failures = [f"{row.preset}: {status}. {reason}" for row in group.rows for status, reason in row.failures_alike]
        _print_lines(
            [
                *(f"[{number}] {label}" for number, label in enumerate(labels, 1)),
                *failures,
                *of_other_plans(group),
                speed_finding(group.rows, group.smallest_claim),
            ],
            console,
        )


def print_cost(cost: GroupCost, console: Console, *, verbose: bool = False) -> None:
    """Print one table in 80 columns, its labels, the assumptions, and which preset costs least.

    `verbose` adds of every preset what its cost stands on, when it pays and where other ways are cheaper.
    """
    title = ", ".join(filter(None, (cost.checkpoint, cost.workload, f"on {cost.machine or 'an unknown machine'}")))
    labels = list(dict.fromkeys(label for preset in cost.presets for label in preset.labels))
    _print_table(title, COST_COLUMNS, [_cost_cells(preset, labels) for preset in cost.presets], console)
    lines = [f"[{number}] {label}" for number, label in enumerate(labels, 1)]
    if cost.refusal:
        lines.append(f"Not priced: {cost.refusal}.")
    else:
        lines += [f"{preset.preset}: {preset.note}" for preset in cost.presets if preset.cost is None]
        lines += _assumptions(cost)
        lines += [line for preset in cost.presets for line in (_more(preset) if verbose else _payback(preset))]
        lines += _cheapest(cost)
    _print_lines(lines, console)


def print_capacity(
    group: AnalyzedGroup, presets: Sequence[PresetCapacity], demand: Demand, deadline_s: float, console: Console
) -> None:
    """Print one row per preset with its cards, and what the forecast assumes."""
    checkpoint = f"{group.checkpoint.name}, " if group.checkpoint else ""
    _print_table(checkpoint + group_name(group), CAPACITY_COLUMNS, map(_capacity_cells, presets), console)
    lines = [f"{preset.preset}: {preset.note}" for preset in presets if preset.note]
    lines.append(
        f"{demand.images_per_day:,.0f} images a day, {demand.peak_images_per_hour:,.0f} of them in the busiest hour, "
        f"95 % of them within {fmt.seconds(deadline_s)}. A forecast: requests come at random times, wait in one queue "
        "and take as long as the measured calls; docs/scale.md says how far that was checked."
    )
    _print_lines(lines, console)


def print_verdicts(analysis: VerificationAnalysis, frontier: Frontier | None, console: Console) -> None:
    """Print the verdict of every preset, the frontier's finding, and which metrics were used with which weights."""
    for preset in analysis.presets:
        verdict = preset.verdict
        rows = metric_rows(verdict, analysis.margins)
        _print_lines([f"{preset.preset}: {level_name(verdict.level)}. {verdict.reason}"], console, gap=not rows)
        if rows:
            _print_table(None, COLUMNS, [row.cells() for row in rows], console)
            items = items_to_decide(verdict, rows)
            _print_lines([f"Too few items to decide: run again with --items {items}."] if items else [], console)
    metrics = (
        f"{metric.name}: {metric.not_measured}"
        if metric.not_measured
        else f"{metric.name}: {metric.model}, weights {(metric.weights_sha256 or '')[:12]}"
        for metric in analysis.metrics
        if metric.not_measured or metric.model
    )
    _print_lines(
        [
            *(
                f"{preset.preset}: {changes}"
                for preset in analysis.presets
                if (changes := changes_sentence(preset.verdict.changes)) is not None
            ),
            *(f"{preset.preset}: {preset.converged.sentence}" for preset in analysis.presets if preset.converged),
            *(f"{preset.preset}: {preset.coverage}" for preset in analysis.presets if preset.coverage),
            *([] if frontier is None else [frontier_finding(frontier)]),
            *(f"{metric} is insensitive here: {reason}." for metric, reason in analysis.insensitive.items()),
            *metrics,
        ],
        console,
    )


def verdicts_as_data(analysis: VerificationAnalysis, frontier: Frontier | None) -> dict[str, Any]:
    """The same, ready for JSON."""
    return {
        "margins_sha256": analysis.verification.margins_sha256,
        "presets": [
            {
                "preset": preset.preset,
                "level": preset.verdict.level.value,
                "meaning": preset.verdict.level.meaning,
                "reason": preset.verdict.reason,
                "metrics": [
                    {**asdict(row), "answer": row.answer} for row in metric_rows(preset.verdict, analysis.margins)
                ],
                "coverage": preset.coverage,
                "changes": {
                    change.direction: {
                        "mean": change.estimate.value,
                        "interval": change.estimate.interval,
                        "significant": change.significant,
                    }
                    for change in preset.verdict.changes
                },
                "converged": None if preset.converged is None else asdict(preset.converged),
            }
            for preset in analysis.presets
        ],
        "frontier": None if frontier is None else [asdict(point) for point in frontier.points],
        "blind": dict(analysis.insensitive),
        "not_measured": {metric.name: metric.not_measured for metric in analysis.metrics if metric.not_measured},
    }


def _print_table(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]], console: Console, *, least_width: int = 0
) -> None:
    """A column is at least `least_width` letters wide, so that its numbers stay on one line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.title = None if title is None else Text(title)
    for name in columns:
        table.add_column(name, no_wrap=name == "preset", overflow="fold", min_width=least_width or None)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _print_lines(lines: Iterable[str], console: Console, *, gap: bool = True) -> None:
    from rich.text import Text

    for line in lines:
        console.print(Text(line))
    if gap:
        console.print()


def _headline_cells(row: Row, labels: list[str]) -> tuple[str, ...]:
    name = _numbered(row.preset, row.labels, labels)
    if row.time is None:
        return (name, row.status, "", "", "", "")
    steps = fmt.computed_steps(row.computed_steps) if row.computed_steps else fmt.NOT_MEASURED
    judge = f"{fmt.percent_with_interval(row.accepted)} of {row.accepted.n}" if row.accepted else fmt.NOT_MEASURED
    return (name, fmt.seconds_of_runs(row.time), _factor(row), steps, judge, fmt.peak_memory(row.memory))


def _numbered(preset: str, own: Iterable[str], labels: list[str]) -> str:
    """The preset with the numbers of its labels, whose text is below the table, so that there is room for numbers."""
    numbers = sorted(labels.index(label) + 1 for label in own)
    return f"{preset} [{','.join(map(str, numbers))}]" if numbers else preset


def _factor(row: Row) -> str:
    if row.factor is None:
        return row.factor_note or ""
    return f"{fmt.factor(row.factor)} ({fmt.factor_range_short(row.factor) or fmt.n_of(row.factor)})"


def _cost_cells(preset: PresetCost, labels: list[str]) -> tuple[str, ...]:
    name = _numbered(preset.preset, preset.labels, labels)
    priced = preset.cost
    if priced is None:
        time = preset.seconds_per_image
        return (name, fmt.seconds_estimate(time) if time else "not priced", "", "", "")
    saved = preset.savings_per_month
    return (
        name,
        _usd_cell(priced.per_image),
        _usd_cell(priced.per_month),
        _usd_cell(saved) if saved else "",
        _gpus(priced),
    )


def _capacity_cells(preset: PresetCapacity) -> tuple[str, ...]:
    capacity = preset.capacity
    if capacity is None:
        return (preset.preset, "none", "", "", "", "", "")
    usd = [fmt.usd(preset.usd_per_month[name]) if name in preset.usd_per_month else "" for name in get_args(Billing)]
    return (preset.preset, str(capacity.cards), fmt.percent(capacity.load), fmt.seconds(capacity.latency_p95_s), *usd)


def _cheapest(cost: GroupCost) -> Iterator[str]:
    """One sentence on the preset that saves most, where its saving is beyond its interval."""
    savers = [
        (preset, preset.cost, saved)
        for preset in cost.presets
        if preset.cost is not None
        and (saved := preset.savings_per_month) is not None
        and saved.interval is not None
        and saved.interval[0] > 0
    ]
    if savers:
        preset, priced, saved = max(savers, key=lambda saver: saver[2].value)
        yield (
            f"{preset.preset} costs least: {fmt.usd(priced.per_month.value)} a month, "
            f"{fmt.usd_with_interval(saved)} less than baseline."
        )


def _usd_cell(estimate: Estimate) -> str:
    interval = fmt.usd_range_short(estimate)
    return "\n".join(filter(None, (fmt.usd(estimate.value), "no interval" if interval is None else interval)))


def _gpus(priced: Cost) -> str:
    if priced.basis.billing == "by-use":
        return str(priced.gpus)
    return f"{priced.gpus}\n{fmt.percent(priced.utilization)} used"


def _assumptions(group: GroupCost) -> tuple[str, ...]:
    price, basis, demand = group.price, group.basis, group.demand
    if price is None or basis is None:
        return ()
    stale = " This price is stale: it is older than 90 days." if basis.stale else ""
    sold = f", sold {price.count} together" if price.count > 1 else ""
    spot = " It is a spot price: the machine can be taken away." if price.kind == "spot" else ""
    return (
        f"Billed {basis.billing} at {price.id}: {fmt.usd_rate(price.usd_per_gpu_hour)} per GPU-hour{sold}, "
        f"{price.day}, {price.source}.{stale}{spot}",
        f"{demand.images_per_day:,.0f} images a day, {demand.days_per_month:.2f} days a month, "
        f"{_load(demand)}{_starts(group)}; GPUs are those of the busiest hour. "
        "The second lines are 95 % intervals, from the measured time alone.",
    )


def _load(demand: Demand) -> str:
    even = abs(demand.peak_share * 24 - 1) < 1e-9
    return "spread evenly" if even else f"{fmt.percent(demand.peak_share)} of them in the busiest hour"


def _starts(group: GroupCost) -> str:
    if group.basis is None or group.basis.billing != "by-use":
        return ""
    starts = group.demand.cold_starts_per_day
    without = (
        " without loading, since random weights are not read from disk (--load-seconds)" if group.without_load else ""
    )
    return f", {starts:g} cold {'start' if starts == 1 else 'starts'} a day{without}"


def _payback(preset: PresetCost) -> tuple[str, ...]:
    if preset.payback is None:
        return ()
    return (
        f"{preset.preset} pays the development back after: {fmt.months(preset.payback.months)}, "
        f"first-year return {100 * preset.payback.first_year_return:.0f} %",
    )


def _more(preset: PresetCost) -> tuple[str, ...]:
    if preset.cost is None:
        return ()
    basis = preset.cost.basis
    lines = [f"{preset.preset}: {basis}"]
    if basis.billing == "by-use" and preset.cold_start_s is None:
        lines.append("  its cold start was not measured and is not in its cost")
    if preset.savings_per_month is not None:
        lines.append(f"  repays its longer start after: {fmt.images(preset.images_to_repay_start)}")
    lines += [f"  {line.removeprefix(f'{preset.preset} ')}" for line in _payback(preset)]
    for cheaper in dict.fromkeys(crossing.cheaper for crossing in preset.crossovers):
        against = ", ".join(
            f"{crossing.instead_of} from {fmt.volume(crossing.images_per_day)}"
            for crossing in preset.crossovers
            if crossing.cheaper == cheaper
        )
        lines.append(f"  {cheaper} is cheaper than {against}".replace(" from never", " never"))
    return tuple(lines)
