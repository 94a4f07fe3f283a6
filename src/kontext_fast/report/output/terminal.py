"""The headline for a terminal: the same rows as the page in 80 columns, labels and reasons of failures below them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.control import smallest_claim
from kontext_fast.analysis.groups import Group, groups
from kontext_fast.analysis.names import group_name
from kontext_fast.analysis.rows import REFERENCE, Row, headline
from kontext_fast.records.schema import ResultFile
from kontext_fast.report.text.phrases import of_other_plans, speed_finding

if TYPE_CHECKING:
    from rich.console import Console


def print_headline(result: ResultFile, console: Console) -> None:
    """Print one table, its finding and its failures per group of comparable runs."""
    from rich.text import Text

    found = groups(result)
    for group in found:
        rows = headline(group)
        labels = list(dict.fromkeys(label for row in rows for label in row.labels))
        _print_table(group, rows, labels, console)
        for number, label in enumerate(labels, 1):
            console.print(Text(f"[{number}] {label}"))
        for row in rows:
            for status, reason in row.failures_alike:
                console.print(Text(f"{row.preset}: {status}. {reason}"))
        for sentence in of_other_plans(group):
            console.print(Text(sentence))
        console.print(Text(speed_finding(rows, smallest_claim(group, found))))
        console.print()


def _print_table(group: Group, rows: tuple[Row, ...], labels: list[str], console: Console) -> None:
    """Cells are plain text: preset names and labels come from records and are never read as markup."""
    from rich.table import Table
    from rich.text import Text

    checkpoint = f"{group.checkpoint.name}, " if group.checkpoint else ""
    table = Table(
        title=Text(checkpoint + group_name(group)),
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    for name in ("preset", "time", "vs baseline", "steps", "judge", "memory"):
        table.add_column(name, no_wrap=name == "preset", overflow="fold", min_width=len(REFERENCE))
    for row in rows:
        table.add_row(*map(Text, _cells(row, labels)))
    console.print(table)


def _cells(row: Row, labels: list[str]) -> tuple[str, ...]:
    # Beside every number, and with room left for the numbers: what the label says stands below the table.
    numbers = sorted(labels.index(label) + 1 for label in row.labels)
    name = f"{row.preset} [{','.join(map(str, numbers))}]" if numbers else row.preset
    if row.time is None:
        return (name, row.status, "", "", "", "")
    steps = fmt.computed_steps(row.computed_steps) if row.computed_steps else fmt.NOT_MEASURED
    judge = f"{fmt.percent(row.accepted.value)} of {row.accepted.n}" if row.accepted else fmt.NOT_MEASURED
    return (name, fmt.seconds_estimate(row.time.mean), _factor(row), steps, judge, fmt.peak_memory(row.memory))


def _factor(row: Row) -> str:
    if row.factor is None:
        return row.factor_note or ""
    return f"{fmt.factor(row.factor)} ({fmt.factor_range_short(row.factor) or f'n={row.factor.n}'})"
