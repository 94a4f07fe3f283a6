"""What the first call of a process costs more than a later one, with nothing compiled on disk and with everything."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.report.text.markup import Markdown, bullets, code_span, paragraphs, table
from tools.docs.doc_context import DocContext, ran_on_gpu

HEADER = ("preset", "compile cache", "size", "applying took", "first call at it", "later calls", "more at first", "n")


def render(context: DocContext) -> Markdown:
    """Rows in the order in which a process ran them: its first size, and sizes that it had not seen."""
    analyzed = [group.group for group in context.groups]
    groups = [group for group in analyzed if group.compile_cache != "user" and ran_on_gpu(group)]
    if not groups:
        return paragraphs(["Not measured on a GPU yet."])
    rows = [tuple(_cells(group, preset)) for group in groups for preset in group.presets if group.runs_of(preset)]
    machines = dict.fromkeys(group.machine for group in groups)
    return paragraphs([table(HEADER, rows), bullets(f"{machine}." for machine in machines if machine)])


def _cells(group: AnalyzedGroup, preset: str) -> Iterator[str]:
    runs, row, workload = group.runs_of(preset), group.row(preset), group.workload
    assert workload is not None
    assert row is not None
    assert row.time is not None
    # A process pays for applying before its first size only.
    began = [run.record for run in runs if run.measurement.first_call_s is not None]
    applied = [record.apply_s for record in began if record.apply_s is not None]
    first, later = fmean(run.measurement.samples[0].wall_s for run in runs), row.time.mean.value
    yield from (code_span(preset), group.compile_cache, f"{workload.width}x{workload.height}")
    yield fmt.seconds(fmean(applied)) if applied else ""
    yield from (fmt.seconds(first), fmt.seconds(later), fmt.seconds(first - later), str(len(runs)))
