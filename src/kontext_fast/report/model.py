"""A file of records as a report tells it: its groups, what they cost, their charts and the records behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.groups import groups
from kontext_fast.analysis.names import cell_name, workload_name
from kontext_fast.analysis.ranking import headline_group_first
from kontext_fast.cost.analysis import Question
from kontext_fast.cost.prices import PriceTable
from kontext_fast.records.schema import Record, ResultFile
from kontext_fast.records.store import RECORDS_NAME
from kontext_fast.report.charting import SECTIONS, Chart
from kontext_fast.report.costs import Costs, costs
from kontext_fast.report.environment import Fact
from kontext_fast.report.sections import Section, sections
from kontext_fast.report.verdicts import Verdicts

COMPUTING = ("torch", "diffusers", "triton")
"""Packages whose version changes times."""


@dataclass(frozen=True)
class Entry:
    """A record in the table that every claim links to."""

    number: int
    record: Record
    measured: tuple[str, ...]
    """What it measured, with the calls that count, or what it was to measure."""


@dataclass(frozen=True)
class Report:
    result: ResultFile
    sections: tuple[Section, ...]
    """The one to lead with first; none where nothing was recorded."""
    costs: Costs
    charts: tuple[Chart, ...]
    entries: tuple[Entry, ...]
    """In the order in which the runs ran."""
    verdicts: Verdicts
    """Of a verification, which is a file of records of its own; empty without one."""
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
        return tuple((preset, f"{fmt.count(n, 'run')}, {what}") for (preset, what), n in counted.items())

    @property
    def not_measured(self) -> tuple[str, ...]:
        """Each clause once, with its workloads where it does not hold for all that something was measured of."""
        measured = {section.title for section in self.sections if section.group.runs}
        titles: dict[str, list[str]] = {}
        for section in self.sections:
            for clause in section.not_measured:
                titles.setdefault(clause, []).append(section.title)
        return tuple(
            clause if measured and measured <= set(of) else f"{'; '.join(of)}: {clause}"
            for clause, of in titles.items()
        )

    @property
    def software(self) -> str:
        """Versions of the libraries that computed, as far as the runs stored them: `torch 2.11.0, diffusers 0.37.1`."""
        versions: dict[str, dict[str, None]] = {}
        for record in self.result.records:
            for name, version in (record.environment.get("packages") or {}).items():
                if version and name in COMPUTING:
                    versions.setdefault(name, {})[str(version)] = None
        return ", ".join(f"{name} {' / '.join(versions[name])}" for name in COMPUTING if name in versions)

    @property
    def facts(self) -> tuple[Fact, ...]:
        dates = sorted({fmt.date(record.created_at) for record in self.result.records})
        rounds = {record.round for record in self.result.records}
        return (
            Fact("Date", " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else fmt.NOT_MEASURED),
            Fact("Suite", f"{self.result.suite} ({fmt.count(len(rounds), 'round')})"),
            Fact("Processes", str(len(self.result.records))),
            Fact("Version", f"kontext-fast {self.result.kontext_fast_version}"),
        )


def build_report(
    result: ResultFile,
    charts: Iterable[Chart],
    table: PriceTable,
    question: Question,
    verdicts: Verdicts | None = None,
    *,
    kept_in: str = f"results/{RECORDS_NAME}",
) -> Report:
    """Raises InvalidInput for an asked price that is not of the card that was measured."""
    found = headline_group_first(groups(result))
    priced = costs(found, table, question)
    ordered = sorted(result.records, key=lambda record: record.order)
    return Report(
        result=result,
        sections=sections(result, found, priced.groups),
        costs=priced,
        charts=tuple(sorted(charts, key=lambda chart: SECTIONS.index(chart.section))),
        entries=tuple(Entry(number, record, _measured(record)) for number, record in enumerate(ordered, 1)),
        verdicts=verdicts or {},
        kept_in=kept_in,
    )


def _measured(record: Record) -> tuple[str, ...]:
    if not record.measurements:
        return tuple(map(cell_name, record.cells))
    return tuple(
        f"{workload_name(measurement.workload)}: "
        + fmt.count(sum(not sample.warmup for sample in measurement.samples), "call")
        for measurement in record.measurements
    )
