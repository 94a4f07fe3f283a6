"""Variants of presets that were measured among themselves, one table for each such benchmark."""

from __future__ import annotations

from collections.abc import Iterator

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup, analyze_benchmark
from kontext_fast.records.names import short_machine
from kontext_fast.records.schema import BASELINE
from kontext_fast.report.text.markup import Markdown, code_span, link, paragraphs, table
from tools.docs.doc_context import DocContext

HEADER = ("preset", "seconds", "factor", "GPU memory")


def render(context: DocContext) -> Markdown:
    """Times, from slow to fast, and factors against the baseline of the same processes' rounds."""
    parts: list[Markdown] = []
    for store, result in context.published.variants:
        place = store.records_file.relative_to(context.published.folder.parent).as_posix()
        for group in analyze_benchmark(result):
            parts += [table(HEADER, _rows(group)), _source(group, link(place, f"{context.to_root}{place}"))]
    return paragraphs(parts or ["No variant of a preset was measured on a GPU yet."])


def _rows(group: AnalyzedGroup) -> Iterator[tuple[str, ...]]:
    for row in group.ranked:
        if row.time is None:
            yield code_span(row.preset), row.status, "", ""
            continue
        factor = fmt.factor_with_interval(row.factor) if row.factor else ""
        yield (
            code_span(row.preset),
            fmt.seconds(row.time.mean.value),
            "reference" if row.preset == BASELINE else factor,
            fmt.peak_memory(row.memory),
        )


def _source(group: AnalyzedGroup, records: Markdown) -> Markdown:
    assert group.workload is not None
    work = group.workload
    processes = fmt.count(len({run.record.run_id for run in group.runs}), "process", "processes")
    machine = short_machine(group.machine) if group.machine else "an unnamed machine"
    return Markdown("Edits of {}x{}, {} steps, on one {}, {}, {}: {}.").format(
        work.width,
        work.height,
        work.steps,
        machine,
        fmt.date_range(run.record.created_at for run in group.runs),
        processes,
        records,
    )
