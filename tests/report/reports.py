"""Reports of made-up records, priced on a day that does not pass."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from kontext_fast.records.schema import ResultFile
from kontext_fast.report.charting import Chart, write_charts
from kontext_fast.report.model import Report, build_report, usual_question
from kontext_fast.report.verification import Verdicts
from tests.cost.gpu_records import TODAY


def report_of(result: ResultFile, verdicts: Verdicts | None = None) -> Report:
    return build_report(result, usual_question(TODAY), verdicts)


def written(chart: ModuleType, result: ResultFile, folder: Path) -> Chart:
    """One chart as it is after all were written into `folder`."""
    drawn = chart.draw(report_of(result))
    (found,) = (chart for chart in write_charts(report_of(result), folder) if chart.title == drawn.title)
    return found
