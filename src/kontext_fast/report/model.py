"""What a report of a benchmark says, computed once from its records and handed to every chart, page and document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup, analyze_benchmark
from kontext_fast.analysis.names import cell_name, group_name, workload_name
from kontext_fast.analysis.ranking import headline_group_first
from kontext_fast.analysis.rows import Failure, Row
from kontext_fast.analysis.stages import StageRow
from kontext_fast.cost.analysis import GroupCost, Question, group_cost
from kontext_fast.cost.billing import Demand
from kontext_fast.cost.headline_comparison import HeadlineComparison, headline_comparison
from kontext_fast.cost.prices import PriceTable, load_prices
from kontext_fast.cost.work import preset_works
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import Record, ResultFile, Workload
from kontext_fast.records.store import RECORDS_NAME
from kontext_fast.report.environment import Fact, environment_facts
from kontext_fast.report.gallery import Gallery, gallery, verified_gallery
from kontext_fast.report.quality import PresetQuality, preset_qualities
from kontext_fast.report.text.phrases import checks, fastest, not_measured, speed_finding
from kontext_fast.report.verification import (
    Distances,
    Verdicts,
    VerificationReport,
    build_verification_report,
    distances_of,
    verdicts_of,
)

COMPUTING = ("torch", "diffusers", "triton")
"""Packages whose version changes times."""
USUAL_IMAGES_PER_DAY = 10_000
USUAL_COLD_STARTS_PER_DAY = 1


@dataclass(frozen=True)
class GroupReport:
    """One group of comparable runs as a report shows it."""

    title: str
    group: AnalyzedGroup
    facts: tuple[Fact, ...]
    finding: str
    caution: str | None
    checks: tuple[str, ...]
    best: Row | None
    """The fastest preset that may be called faster than baseline."""
    gallery: Gallery
    failures: tuple[tuple[str, Failure], ...]
    quality: Mapping[str, PresetQuality]
    """By preset."""
    cost: GroupCost
    not_measured: tuple[str, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.group.ranked

    @property
    def stages(self) -> tuple[StageRow, ...]:
        return self.group.stages


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
    analysis: tuple[AnalyzedGroup, ...]
    """In the order in which the groups were measured."""
    groups: tuple[GroupReport, ...]
    """The one to lead with first; none where nothing was recorded."""
    question: Question
    """What is asked of the cost."""
    prices: PriceTable
    comparison: HeadlineComparison | str
    """What the charts of cost show, or why they show nothing."""
    entries: tuple[Entry, ...]
    """In the order in which the runs ran."""
    environment: tuple[Fact, ...]
    verdicts: Verdicts
    """Of a verification, which has records of its own; empty without one."""
    distances: Distances | None
    """How far presets' images lie from those of all steps; None where nobody measured it."""
    samples: Gallery
    """Images of the verification that the verdicts are of; none without one."""
    verification: VerificationReport | None
    """Where these records themselves are of a verification."""
    kept_in: str
    """The files of the records, as a reader finds them."""

    @property
    def lead(self) -> GroupReport | None:
        return self.groups[0] if self.groups else None

    @property
    def machine(self) -> str | None:
        """The machine that it leads with."""
        return self.lead.group.machine if self.lead else None

    def by_machine(self) -> tuple[Report, ...]:
        """A report of the groups of each machine, the leading one first; what ran nowhere is in the first."""
        machines = list(dict.fromkeys(group.group.machine for group in self.groups if group.group.runs))
        if len(machines) < 2:
            return (self,)
        leading = machines[0]

        def of(machine: str | None) -> Callable[[AnalyzedGroup], bool]:
            return lambda group: group.machine == machine or (machine == leading and group.machine not in machines)

        return tuple(self._restricted(of(machine)) for machine in machines)

    def _restricted(self, shown: Callable[[AnalyzedGroup], bool]) -> Report:
        groups = tuple(group for group in self.groups if shown(group.group))
        return replace(
            self,
            groups=groups,
            analysis=tuple(filter(shown, self.analysis)),
            comparison=headline_comparison((group.cost for group in groups), self.prices, self.question.today),
        )

    @property
    def licence(self) -> tuple[str, ...]:
        return self.prices.licence_notes()

    @property
    def numbers(self) -> Mapping[str, int]:
        """The number of each run's entry, by the id of the run."""
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
        measured = {group.title for group in self.groups if group.group.runs}
        titles: dict[str, list[str]] = {}
        for group in self.groups:
            for clause in group.not_measured:
                titles.setdefault(clause, []).append(group.title)
        return tuple(
            clause if measured and measured <= set(groups) else f"{'; '.join(groups)}: {clause}"
            for clause, groups in titles.items()
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
        records = self.result.records
        rounds = {record.round for record in records}
        return (
            Fact("Date", fmt.date_range(record.created_at for record in records)),
            Fact("Suite", f"{self.result.suite} ({fmt.count(len(rounds), 'round')})"),
            Fact("Processes", str(len(records))),
            Fact("Version", f"kontext-fast {self.result.kontext_fast_version}"),
        )


def build_report(
    result: ResultFile,
    question: Question | None = None,
    *,
    verified: VerificationReport | None = None,
    distances: Distances | None = None,
    kept_in: str = f"results/{RECORDS_NAME}",
) -> Report:
    """Compute everything. `question` is what is asked of the cost; None asks what `kontext cost` asks by default.
    `verified` is a verification, whose verdicts, distances and images stand beside the times; `distances` of another
    origin take the place of its own.

    Raises InvalidInput for an asked price that is not of the card that was measured.
    """
    question, prices = question or usual_question(), load_prices()
    analysis = analyze_benchmark(result)
    verdicts = verdicts_of(verified) if verified else {}
    if distances is None and verified is not None:
        distances = distances_of(verified)
    groups = tuple(
        _group_report(group, result, verdicts, _cost(group, prices, question))
        for group in headline_group_first(analysis)
    )
    return Report(
        result=result,
        analysis=analysis,
        groups=groups,
        question=question,
        prices=prices,
        comparison=headline_comparison((group.cost for group in groups), prices, question.today),
        entries=_entries(result.records),
        environment=environment_facts(result.records),
        verdicts=verdicts,
        distances=distances,
        samples=verified_gallery(verified) if verified else Gallery((), 0),
        verification=build_verification_report(result) if result.verification else None,
        kept_in=kept_in,
    )


def usual_question(today: date | None = None) -> Question:
    """What `kontext cost` asks where nothing is said."""
    demand = Demand(images_per_day=USUAL_IMAGES_PER_DAY, cold_starts_per_day=USUAL_COLD_STARTS_PER_DAY)
    return Question(demand=demand, today=today or date.today())


def _group_report(group: AnalyzedGroup, result: ResultFile, verdicts: Verdicts, cost: GroupCost) -> GroupReport:
    quality = preset_qualities(group, verdicts)
    holding = {preset: known.verdict for preset, known in quality.items() if known.verdict is not None}
    return GroupReport(
        title=group_name(group),
        group=group,
        facts=_facts(group),
        finding=speed_finding(group.ranked, group.smallest_claim, holding),
        caution=group.checkpoint.caution if group.checkpoint else None,
        checks=checks(group),
        best=fastest(group.ranked, group.smallest_claim),
        gallery=gallery(group, result.items),
        failures=tuple((row.preset, failure) for row in group.ranked for failure in row.failures),
        quality=quality,
        cost=cost,
        not_measured=not_measured(group, cost.refusal),
    )


def _cost(group: AnalyzedGroup, prices: PriceTable, question: Question) -> GroupCost:
    try:
        return group_cost(group, prices, question)
    except InvalidInput as error:
        if question.price is not None:
            raise
        # One workload that is too large for the typical price must not cost the report its other numbers.
        refusal = str(error).removesuffix(".")
        return GroupCost(group, preset_works(group), None, refusal, question.demand, ())


def _facts(group: AnalyzedGroup) -> tuple[Fact, ...]:
    checkpoint, workload = group.checkpoint, group.workload
    facts = []
    if checkpoint:
        size = f"{fmt.parameters(checkpoint.transformer_parameters)} transformer parameters, {checkpoint.dtype}"
        facts.append(Fact("Checkpoint", f"{checkpoint.name} ({size})"))
    facts.append(Fact("Machine", group.machine or "unknown"))
    if workload:
        facts += _workload_facts(group, workload)
    return tuple(facts)


def _workload_facts(group: AnalyzedGroup, workload: Workload) -> list[Fact]:
    reference = f"{workload.reference_width}x{workload.reference_height}" if workload.reference_width else "none"
    warmups = [sum(sample.warmup for sample in run.measurement.samples) for run in group.runs]
    calls = [len(run.samples) for run in group.runs]
    return [
        Fact("Size really run", f"{workload.width}x{workload.height} pixels, reference {reference}"),
        Fact(
            "Tokens",
            f"{workload.text_tokens} text + {workload.image_tokens} image + {workload.reference_tokens} reference",
        ),
        Fact("Steps", f"{workload.steps}, guidance {workload.guidance:g}, batch {workload.batch}"),
        Fact("Items", fmt.count(len(workload.items), "item")),
        Fact("Calls per process", f"{_span(calls)} measured after {_span(warmups)} warm-up"),
    ]


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _entries(records: Iterable[Record]) -> tuple[Entry, ...]:
    ordered = sorted(records, key=lambda record: record.order)
    return tuple(Entry(number, record, _measured(record)) for number, record in enumerate(ordered, 1))


def _measured(record: Record) -> tuple[str, ...]:
    if not record.measurements:
        return tuple(map(cell_name, record.cells))
    return tuple(
        f"{workload_name(measurement.workload)}: "
        + fmt.count(sum(not sample.warmup for sample in measurement.samples), "call")
        for measurement in record.measurements
    )
