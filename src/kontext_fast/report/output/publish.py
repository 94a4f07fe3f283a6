"""From a result folder to its charts, raw samples and documents, in the same layout or in a folder of one's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kontext_fast.cost.analysis import Question
from kontext_fast.cost.prices import load_prices
from kontext_fast.errors import InvalidInput
from kontext_fast.records.atomic import write_atomically
from kontext_fast.records.samples_csv import samples_csv
from kontext_fast.records.schema import ResultFile
from kontext_fast.records.store import RECORDS_NAME, ResultStore
from kontext_fast.report.charting import Chart, draw_charts
from kontext_fast.report.costs import usual_question
from kontext_fast.report.model import Report, build_report
from kontext_fast.report.output.documents import DOCUMENTS, Audience, document
from kontext_fast.report.output.page import Pictures, render
from kontext_fast.report.verdicts import Verdicts
from kontext_fast.report.verdicts import verdicts as read_verdicts


@dataclass(frozen=True)
class Published:
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
) -> Published:
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
    story = write_documents(
        result, store, folder, samples_file, [audience], question or usual_question(), verdicts=verdicts
    )
    return Published(result, folder / "reports" / DOCUMENTS[audience], story.charts)


def write_documents(
    result: ResultFile,
    pictures: Pictures,
    folder: Path,
    samples_file: Path,
    audiences: Iterable[Audience],
    question: Question,
    *,
    verdicts: Verdicts | None = None,
    kept_in: str = f"results/{RECORDS_NAME}",
) -> Report:
    """Draw the charts below `folder`, write the samples and a document for each of `audiences`; what they tell.

    `verdicts` are those of a verification, which stand beside the times; `kept_in` is where the records are, as the
    documents say it. Raises InvalidInput where they cannot be written or a price does not fit.
    """
    try:
        charts = draw_charts(result, folder / "visualizations", verdicts)
        story = build_report(result, charts, load_prices(), question, verdicts, kept_in=kept_in)
        write_atomically(samples_file, samples_csv(result).encode())
        for audience in audiences:
            text = render(story, pictures) if audience == "page" else document(story, audience)
            write_atomically(folder / "reports" / DOCUMENTS[audience], text.encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidInput(f"The report cannot be written to {folder} ({reason}): choose another folder.") from error
    return story
