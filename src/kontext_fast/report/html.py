"""The page: records in, one self-contained HTML text out. `format` writes the numbers, the template the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from kontext_fast.records.schema import ResultFile, Workload
from kontext_fast.records.store import ResultStore
from kontext_fast.report import format as write
from kontext_fast.report.charting import Chart
from kontext_fast.report.checks import checks
from kontext_fast.report.control import smallest_claim
from kontext_fast.report.environment import Fact, environment_facts
from kontext_fast.report.gallery import Gallery, Picture, gallery
from kontext_fast.report.groups import BASELINE, Group, groups
from kontext_fast.report.headline import Failure, Row, headline
from kontext_fast.report.images import chart_uri, data_uri
from kontext_fast.report.notes import checkpoint_caution, group_name, not_measured, speed_finding
from kontext_fast.report.stages import STEP_KINDS, StageRow, stage_rows


@dataclass(frozen=True)
class Section:
    """One group as the page shows it."""

    title: str
    group: Group
    facts: tuple[Fact, ...]
    finding: str
    caution: str | None
    checks: tuple[str, ...]
    rows: tuple[Row, ...]
    stages: tuple[StageRow, ...]
    gallery: Gallery
    failures: tuple[tuple[str, Failure], ...]
    not_measured: tuple[str, ...]


def render(result: ResultFile, store: ResultStore, charts: Sequence[Chart]) -> str:
    """The page as text. Pictures are read from `store`; one that is missing there is said to be."""

    def picture_uri(picture: Picture) -> str | None:
        return data_uri(store.image_path(picture.image)) if picture.image else None

    environment = Environment(
        loader=PackageLoader("kontext_fast.report", "template"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(
        write=write, baseline=BASELINE, step_kinds=STEP_KINDS, picture_uri=picture_uri, chart_uri=chart_uri
    )
    return environment.get_template("page.html.j2").render(
        result=result,
        sections=_sections(result),
        charts=charts,
        run_facts=_run_facts(result),
        environment_facts=environment_facts(result.records),
    )


def _sections(result: ResultFile) -> list[Section]:
    found = groups(result)
    return [_section(result, group, smallest_claim(group, found)) for group in found]


def _section(result: ResultFile, group: Group, limit: float | None) -> Section:
    rows = headline(group)
    checkpoint = group.checkpoint
    return Section(
        title=group_name(group),
        group=group,
        facts=_group_facts(group),
        finding=speed_finding(rows, limit),
        caution=checkpoint_caution(checkpoint),
        checks=checks(group, limit),
        rows=rows,
        stages=stage_rows(group),
        gallery=gallery(group, result.items),
        failures=tuple((row.preset, failure) for row in rows for failure in row.failures),
        not_measured=not_measured(group, rows),
    )


def _run_facts(result: ResultFile) -> tuple[Fact, ...]:
    dates = sorted({write.date(record.created_at) for record in result.records})
    rounds = {record.round for record in result.records}
    return (
        Fact("Date", " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else write.NOT_MEASURED),
        Fact("Suite", f"{result.suite} ({write.count(len(rounds), 'round')})"),
        Fact("Processes", str(len(result.records))),
        Fact("Version", f"kontext-fast {result.kontext_fast_version}"),
    )


def _group_facts(group: Group) -> tuple[Fact, ...]:
    checkpoint, workload = group.checkpoint, group.workload
    facts = []
    if checkpoint:
        size = f"{write.parameters(checkpoint.transformer_parameters)} transformer parameters, {checkpoint.dtype}"
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
        Fact("Items", write.count(len(workload.items), "item")),
        Fact("Calls per process", f"{_span(calls)} measured after {_span(warmups)} warm-up"),
    ]


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
