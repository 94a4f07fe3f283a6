"""What a full step takes in the runs of the headline, and what the card was doing meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean

from kontext_fast.analysis.groups import Run
from kontext_fast.analysis.stages import StageRow
from kontext_fast.records.schema import GpuReadings
from kontext_fast.report.text.markup import Markdown, bullets, code_span, paragraphs, table
from tools.docs.doc_context import NOTHING, DocContext

HEADER = ("preset", "a full step", "power", "clock", "held back by", "n")


def render(context: DocContext) -> Markdown:
    """A row for every preset that computed a step in full, the slowest call first."""
    group = context.headline
    if group is None:
        return paragraphs([NOTHING])
    rows = [row for row in group.stages if "full" in row.steps]
    gpus = [run.record.environment.get("gpu") or {} for run in group.group.runs]
    limits = {(gpu.get("power_limit_w"), gpu.get("clock_sm_max_mhz")) for gpu in gpus}
    return paragraphs(
        [
            table(HEADER, (tuple(_cells(row, group.group.runs_of(row.preset))) for row in rows)),
            bullets(f"The card's limits: {watts:g} W, {clock} MHz." for watts, clock in limits if watts and clock),
        ]
    )


def _cells(row: StageRow, runs: Sequence[Run]) -> Iterator[str]:
    readings = [sample.gpu for run in runs for sample in run.samples if sample.gpu is not None]
    yield code_span(row.preset)
    yield f"{1e3 * row.steps['full']:.0f} ms"
    yield _mean((value for reading in readings for value in reading.power_w), "W")
    yield _mean((value for reading in readings for value in reading.clock_sm_mhz), "MHz")
    yield _reasons(readings)
    yield str(len(runs))


def _mean(values: Iterable[float | None], unit: str) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.0f} {unit}" if known else ""


def _reasons(readings: Iterable[GpuReadings]) -> str:
    return ", ".join(dict.fromkeys(reason for reading in readings for reason in reading.throttle_reasons))
