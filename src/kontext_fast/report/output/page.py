"""The page of a report: a report and its charts in, one self-contained HTML text out."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from kontext_fast.analysis.stages import STEP_KINDS
from kontext_fast.cost import BILLINGS
from kontext_fast.report import templates
from kontext_fast.report.charting import SECTIONS, Chart
from kontext_fast.report.gallery import GalleryPicture
from kontext_fast.report.model import Report
from kontext_fast.report.output.cost_form import form_data
from kontext_fast.report.output.images import ImageFolder, png_uri, stored_image_uri
from kontext_fast.report.text.takeaways import takeaways, title

SCRIPTS = ("cost.js", "compare.js")


def render(report: Report, charts: Sequence[Chart], images: ImageFolder) -> str:
    """The page as text. Pictures are read from `images`; one that is missing there is said to be."""

    def picture_uri(picture: GalleryPicture) -> str | None:
        return stored_image_uri(images.image_path(picture.image)) if picture.image else None

    script = "\n".join(
        files("kontext_fast.report").joinpath("template", name).read_text(encoding="utf-8") for name in SCRIPTS
    )
    charts_of = {name: [chart for chart in charts if chart.section == name] for name in SECTIONS}
    return templates.render(
        "page.html.j2",
        report=report,
        title=title(report.lead),
        takeaways=takeaways(report),
        sections={
            name: section for name, section in SECTIONS.items() if charts_of[name] or not section.is_of_charts_alone
        },
        charts=charts_of,
        live=form_data(report),
        billings=BILLINGS,
        step_kinds=STEP_KINDS,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        picture_uri=picture_uri,
        png_uri=png_uri,
        beside=beside_reports,
    )


def beside_reports(chart: Path) -> str:
    """From `reports/` to a chart `visualizations/<folder>/<file>`."""
    return "/".join(("..", *chart.parts[-3:]))
