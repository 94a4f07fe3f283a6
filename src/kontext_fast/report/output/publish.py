"""From a result folder to its charts, raw samples and documents, in the same layout or in a folder of one's own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from kontext_fast.analysis.ranking import slow_to_fast
from kontext_fast.analysis.rows import Row
from kontext_fast.analysis.tiers import is_meaningless, may_claim, our_rows
from kontext_fast.cost.analysis import Question
from kontext_fast.errors import InvalidInput
from kontext_fast.records.merge import load_all
from kontext_fast.records.names import is_peer
from kontext_fast.records.samples_csv import samples_csv
from kontext_fast.records.schema import BASELINE
from kontext_fast.records.store import ResultStore, write_atomically
from kontext_fast.report import templates
from kontext_fast.report.business import business_case
from kontext_fast.report.charting import Chart, write_charts
from kontext_fast.report.model import GroupReport, Report, build_report
from kontext_fast.report.output import page
from kontext_fast.report.output.page import ImageFolder, beside_reports
from kontext_fast.report.verification import build_verification_report

QUALITY_PAGE = Path("visualizations") / "quality" / "index.html"
"""Below a folder of a verification."""

Audience = Literal["page", "blog", "paper", "business"]

DOCUMENTS: Final[dict[Audience, str]] = {
    "page": "index.html",
    "blog": "blog.md",
    "paper": "paper.tex",
    "business": "business.md",
}


def render(report: Report, charts: Sequence[Chart], audience: Audience) -> str:
    """The text of any document but the page."""
    return templates.render(
        f"{DOCUMENTS[audience]}.j2",
        report=report,
        lead=report.lead,
        charts=charts,
        hero=hero(charts),
        rows=blog_rows(report.lead),
        shown=blog_charts(charts),
        case=business_case(report) if audience == "business" else None,
        beside=beside_reports,
    )


def hero(charts: Sequence[Chart]) -> Chart | None:
    """The summary of what is gained where there is one, else the first picture; None where none was drawn."""
    drawn = [chart for chart in charts if chart.path is not None]
    summaries = [chart for chart in drawn if chart.section == "summary"]
    return next(iter(summaries or drawn), None)


MOST_BLOG_ROWS = 6


def blog_rows(lead: GroupReport | None) -> tuple[Row, ...]:
    """Baseline, our fastest presets and the fastest recipe of another project, one that carries a claim where there is
    any, slow to fast."""
    if lead is None:
        return ()
    baseline = lead.group.row(BASELINE)
    peers = [row for row in lead.group.ranked if is_peer(row.preset) and row.time and not is_meaningless(row)]
    rivals = [row for row in peers if may_claim(row)] or peers
    frame = [row for row in (baseline, *rivals[-1:]) if row is not None and row.time]
    ours = our_rows(lead.group)[len(frame) - MOST_BLOG_ROWS :]
    return slow_to_fast([*frame, *ours])


def blog_charts(charts: Sequence[Chart]) -> tuple[Chart, ...]:
    """Two beside the hero: quality against time or the times alone, and the sizes."""
    order = ("frontier", "like_for_like", "speed", "sizes", "cost")
    drawn = [chart for section in order for chart in charts if chart.section == section and chart.path is not None]
    first = [next((chart for chart in drawn if chart.section in group), None) for group in (order[:3], order[3:])]
    return tuple(chart for chart in first if chart is not None and chart is not hero(charts))


@dataclass(frozen=True)
class Published:
    report: Report
    document: Path
    charts: tuple[Chart, ...]


def publish(
    records: Path | Sequence[Path],
    out: Path | None = None,
    *,
    audience: Audience = "page",
    question: Question | None = None,
    verification: Path | None = None,
) -> Published:
    """Write `visualizations/`, `results/samples.csv` and one document in `reports/` below `out`, or beside the records.
    Several folders of records are one report, which needs an `out`.

    `question` is what is asked of the cost; None asks what `kontext cost` asks by default. `verification` is a folder
    of `kontext verify`, whose verdicts and images stand beside the times. Only the records and their images are read.
    Raises InvalidInput where they cannot be read, `out` cannot be written, or a price does not fit.
    """
    folders = [records] if isinstance(records, Path) else list(records)
    stores = {store.records_file.resolve(): store for store in map(ResultStore.find, folders)}
    if len(stores) > 1 and out is None:
        raise InvalidInput(f"A report of {len(stores)} folders stands in none of them: add -o and a folder for it.")
    store = next(iter(stores.values()))
    judged = None if verification is None else ResultStore.find(verification)
    verified = None if judged is None else build_verification_report(judged.load())
    report = build_report(load_all(folders), question, verified=verified)
    folder = store.folder if out is None else out
    samples_file = store.samples_file if out is None else out / "results" / store.samples_file.name
    page_of_quality = None if judged is None else _beside(judged.folder / QUALITY_PAGE, folder / "reports")
    images = Stores(tuple(filter(None, (*stores.values(), judged))))
    charts = write_report(report, images, folder, samples_file, [audience], quality_page=page_of_quality)
    return Published(report, folder / "reports" / DOCUMENTS[audience], charts)


@dataclass(frozen=True)
class Stores:
    """Several result folders as one folder of images."""

    stores: tuple[ResultStore, ...]

    def image_path(self, digest: str) -> Path:
        """Where the image with this hash is, in whichever folder it was stored."""
        paths = [store.image_path(digest) for store in self.stores]
        return next((path for path in paths if path.is_file()), paths[0])


def _beside(page: Path, folder: Path) -> str | None:
    """The way from `folder` to `page`, None where there is no such page."""
    return Path(os.path.relpath(page, folder)).as_posix() if page.is_file() else None


def write_report(
    report: Report,
    images: ImageFolder,
    folder: Path,
    samples_file: Path,
    audiences: Iterable[Audience],
    *,
    quality_page: str | None = None,
) -> tuple[Chart, ...]:
    """Write the charts below `folder`, the samples and a document for each of `audiences`; returns the charts.
    `quality_page` is where the page of the verification lies, from the documents on.

    Raises InvalidInput where they cannot be written.
    """
    try:
        charts = write_charts(report, folder / "visualizations")
        write_atomically(samples_file, samples_csv(report.result).encode())
        for audience in audiences:
            if audience == "page":
                text = page.render(report, charts, images, quality_page)
            else:
                text = render(report, charts, audience)
            write_atomically(folder / "reports" / DOCUMENTS[audience], text.encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidInput(f"The report cannot be written to {folder} ({reason}): choose another folder.") from error
    return charts
