"""Reports of made-up records, priced on a day that does not pass."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from kontext_fast.records.schema import ResultFile
from kontext_fast.records.store import ResultStore
from kontext_fast.report.charting import Chart, write_charts
from kontext_fast.report.model import Report, build_report, usual_question
from kontext_fast.report.verification import build_verification_report
from tests.cost.gpu_records import TODAY


def report_of(result: ResultFile, verified: Path | None = None) -> Report:
    """`verified` is the folder of a verification, whose verdicts stand in the report."""
    of_verification = None if verified is None else build_verification_report(ResultStore.find(verified).load())
    return build_report(result, usual_question(TODAY), verified=of_verification)


def written(chart: ModuleType, result: ResultFile, folder: Path) -> Chart:
    """One chart as it is after all were written into `folder`."""
    drawn = chart.draw(report_of(result))
    (found,) = (chart for chart in write_charts(report_of(result), folder) if chart.title == drawn.title)
    return found
