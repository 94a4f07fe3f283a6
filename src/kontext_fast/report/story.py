"""A file of records as a report tells it: its groups, what they cost, their charts and the records behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kontext_fast.cost.analysis import Question
from kontext_fast.cost.prices import PriceTable
from kontext_fast.records.schema import Record, ResultFile
from kontext_fast.records.store import RECORDS_NAME
from kontext_fast.report import format as write
from kontext_fast.report.charting import Chart
from kontext_fast.report.costs import Costs, costs
from kontext_fast.report.environment import Fact
from kontext_fast.report.groups import groups
from kontext_fast.report.lead import most_telling_first
from kontext_fast.report.notes import cell_name, workload_name
from kontext_fast.report.sections import Section, sections


@dataclass(frozen=True)
class Entry:
    """A record in the table that every claim links to."""

    number: int
    record: Record
    measured: tuple[str, ...]
    """What it measured, with the calls that count, or what it was to measure."""


@dataclass(frozen=True)
class Story:
    result: ResultFile
    sections: tuple[Section, ...]
    """The one to lead with first; none where nothing was recorded."""
    costs: Costs
    charts: tuple[Chart, ...]
    entries: tuple[Entry, ...]
    """In the order in which the runs ran."""
    kept_in: str
    """The files of the records, as a reader finds them."""

    @property
    def lead(self) -> Section | None:
        return self.sections[0] if self.sections else None

    @property
    def numbers(self) -> Mapping[str, int]:
        """Of each run id the number of its entry."""
        return {entry.record.run_id: entry.number for entry in self.entries}

    @property
    def failures(self) -> tuple[tuple[str, str], ...]:
        """Each distinct failure once, as the preset and what happened, with how many runs ended so."""
        counted = Counter(
            (record.preset, f"{record.status}: {record.reason or 'No reason was recorded.'}")
            for record in self.result.records
            if record.status != "ok"
        )
        return tuple((preset, f"{write.count(n, 'run')}, {what}") for (preset, what), n in counted.items())

    @property
    def facts(self) -> tuple[Fact, ...]:
        dates = sorted({write.date(record.created_at) for record in self.result.records})
        rounds = {record.round for record in self.result.records}
        return (
            Fact("Date", " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else write.NOT_MEASURED),
            Fact("Suite", f"{self.result.suite} ({write.count(len(rounds), 'round')})"),
            Fact("Processes", str(len(self.result.records))),
            Fact("Version", f"kontext-fast {self.result.kontext_fast_version}"),
        )


def tell(
    result: ResultFile,
    charts: Iterable[Chart],
    table: PriceTable,
    question: Question,
    *,
    kept_in: str = f"results/{RECORDS_NAME}",
) -> Story:
    """Raises InvalidInput for an asked price that is not of the card that was measured."""
    found = most_telling_first(groups(result))
    priced = costs(found, table, question)
    ordered = sorted(result.records, key=lambda record: record.order)
    return Story(
        result=result,
        sections=sections(result, found, priced.groups),
        costs=priced,
        charts=tuple(charts),
        entries=tuple(Entry(number, record, _measured(record)) for number, record in enumerate(ordered, 1)),
        kept_in=kept_in,
    )


def _measured(record: Record) -> tuple[str, ...]:
    if not record.measurements:
        return tuple(map(cell_name, record.cells))
    return tuple(
        f"{workload_name(measurement.workload)}: "
        + write.count(sum(not sample.warmup for sample in measurement.samples), "call")
        for measurement in record.measurements
    )
