"""From a result folder to its charts, raw samples and documents, in the same layout or in a folder of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kontext_fast.cost.analysis import Question
from kontext_fast.cost.prices import load_prices
from kontext_fast.errors import InvalidInput
from kontext_fast.records.atomic import write_atomically
from kontext_fast.records.samples_csv import samples_csv
from kontext_fast.records.schema import ResultFile
from kontext_fast.records.store import ResultStore
from kontext_fast.report.audience import DOCUMENTS, Audience
from kontext_fast.report.charting import Chart, draw_charts
from kontext_fast.report.costs import usual_question
from kontext_fast.report.documents import document
from kontext_fast.report.html import render
from kontext_fast.report.story import tell
from kontext_fast.report.verified import verdicts as read_verdicts


@dataclass(frozen=True)
class Report:
    result: ResultFile
    document: Path
    charts: tuple[Chart, ...]

    @property
    def page(self) -> Path:
        """The document, which is a page unless something else was asked for."""
        return self.document


def publish(
    records: Path,
    out: Path | None = None,
    *,
    audience: Audience = "page",
    question: Question | None = None,
    verification: Path | None = None,
) -> Report:
    """Write `visualizations/`, `results/samples.csv` and one document in `reports/` below `out`, or beside the records.

    `question` is what is asked of the cost; None asks what `kontext cost` asks by default. `verification` is a folder
    of `kontext verify`, whose verdicts stand beside the times. Only the records and their images are read.
    Raises InvalidInput where they cannot be read, `out` cannot be written, or a price does not fit.
    """
    store = ResultStore.find(records)
    result = store.load()
    verdicts = {} if verification is None else read_verdicts(verification)
    folder = store.folder if out is None else out
    samples_file = store.samples_file if out is None else out / "results" / store.samples_file.name
    path = folder / "reports" / DOCUMENTS[audience]
    try:
        charts = draw_charts(result, folder / "visualizations", verdicts)
        story = tell(result, charts, load_prices(), question or usual_question(), verdicts)
        text = render(story, store) if audience == "page" else document(story, audience)
        write_atomically(samples_file, samples_csv(result).encode())
        write_atomically(path, text.encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidInput(f"The report cannot be written to {folder} ({reason}): choose another folder.") from error
    return Report(result, path, charts)
