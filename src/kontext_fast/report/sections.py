"""Everything that the page and the documents show of one group of comparable runs, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.control import smallest_claim
from kontext_fast.analysis.groups import Group
from kontext_fast.analysis.names import group_name
from kontext_fast.analysis.ranking import slow_to_fast
from kontext_fast.analysis.rows import Failure, Row, headline
from kontext_fast.analysis.stages import StageRow, stage_rows
from kontext_fast.cost.analysis import GroupCost, PresetCost
from kontext_fast.records.schema import ResultFile, Workload
from kontext_fast.report.costs import preset_cost
from kontext_fast.report.environment import Fact
from kontext_fast.report.gallery import Gallery, gallery
from kontext_fast.report.text.phrases import checks, fastest, not_measured, speed_finding


@dataclass(frozen=True)
class Section:
    """One group as a report shows it."""

    title: str
    group: Group
    facts: tuple[Fact, ...]
    finding: str
    caution: str | None
    checks: tuple[str, ...]
    rows: tuple[Row, ...]
    best: Row | None
    """The fastest preset that may be called faster than baseline."""
    stages: tuple[StageRow, ...]
    gallery: Gallery
    failures: tuple[tuple[str, Failure], ...]
    cost: GroupCost
    not_measured: tuple[str, ...]

    def cost_of(self, preset: str) -> PresetCost | None:
        return preset_cost(self.cost, preset)

    def run_ids(self, preset: str) -> tuple[str, ...]:
        """The records that a preset's numbers come from."""
        return tuple(run.record.run_id for run in self.group.runs_of(preset))


def sections(result: ResultFile, found: Sequence[Group], priced: Sequence[GroupCost]) -> tuple[Section, ...]:
    """One per group, in their order; `priced` has the same order."""
    return tuple(
        _section(result, group, smallest_claim(group, found), cost) for group, cost in zip(found, priced, strict=True)
    )


def _section(result: ResultFile, group: Group, limit: float | None, cost: GroupCost) -> Section:
    rows = slow_to_fast(headline(group))
    order = [row.preset for row in rows]
    return Section(
        title=group_name(group),
        group=group,
        facts=_facts(group),
        finding=speed_finding(rows, limit),
        caution=group.checkpoint.caution if group.checkpoint else None,
        checks=checks(group, limit),
        rows=rows,
        best=fastest(rows, limit),
        stages=tuple(sorted(stage_rows(group), key=lambda row: order.index(row.preset))),
        gallery=gallery(group, result.items),
        failures=tuple((row.preset, failure) for row in rows for failure in row.failures),
        cost=cost,
        not_measured=not_measured(group, rows, cost.refusal),
    )


def _facts(group: Group) -> tuple[Fact, ...]:
    checkpoint, workload = group.checkpoint, group.workload
    facts = []
    if checkpoint:
        size = f"{fmt.parameters(checkpoint.transformer_parameters)} transformer parameters, {checkpoint.dtype}"
        facts.append(Fact("Checkpoint", f"{checkpoint.name} ({size})"))
    facts.append(Fact("Machine", group.machine or "unknown"))
    if workload:
        facts += _workload_facts(group, workload)
    return tuple(facts)


def _workload_facts(group: Group, workload: Workload) -> list[Fact]:
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
