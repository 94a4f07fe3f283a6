"""From a result folder to its charts, raw samples and page, in the same layout or in a folder of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kontext_fast.errors import InvalidInput
from kontext_fast.records.atomic import write_atomically
from kontext_fast.records.samples_csv import samples_csv
from kontext_fast.records.schema import ResultFile
from kontext_fast.records.store import ResultStore
from kontext_fast.report.charting import Chart, draw_charts
from kontext_fast.report.html import render


@dataclass(frozen=True)
class Report:
    result: ResultFile
    page: Path
    charts: tuple[Chart, ...]


def write_report(records: Path, out: Path | None = None) -> Path:
    """Write the report of `records` and return the page's path; see `publish`."""
    return publish(records, out).page


def publish(records: Path, out: Path | None = None) -> Report:
    """Write `visualizations/`, `results/samples.csv` and `reports/index.html` below `out`, or beside the records.

    Only the records and their images are read. Raises InvalidInput where they cannot be read or `out` not be written.
    """
    store = ResultStore.find(records)
    result = store.load()
    folder = store.folder if out is None else out
    samples_file = store.samples_file if out is None else out / "results" / store.samples_file.name
    page = folder / "reports" / "index.html"
    try:
        charts = draw_charts(result, folder / "visualizations")
        write_atomically(samples_file, samples_csv(result).encode())
        write_atomically(page, render(result, store, charts).encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidInput(f"The report cannot be written to {folder} ({reason}): choose another folder.") from error
    return Report(result, page, charts)
