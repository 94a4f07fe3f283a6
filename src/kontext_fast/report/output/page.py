"""The page of a report: a report and its charts in, one self-contained HTML text out."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.stages import STEP_KINDS
from kontext_fast.cost import BILLINGS
from kontext_fast.cost.export import as_json, price_as_json
from kontext_fast.cost.prices import Kind
from kontext_fast.cost.work import paired_half_s
from kontext_fast.records.schema import BASELINE
from kontext_fast.report import templates
from kontext_fast.report.charting import SECTIONS, Chart
from kontext_fast.report.gallery import GalleryPicture
from kontext_fast.report.model import GroupReport, Report
from kontext_fast.report.text.takeaways import takeaways, title

if TYPE_CHECKING:
    from PIL import Image


MOST_PIXELS = 512
"""Longest side of an inlined picture; larger ones are scaled down and the full ones stay in the result folder."""


class ImageFolder(Protocol):
    """Where images are stored: a result folder, or several."""

    def image_path(self, digest: str) -> Path:
        """Where the image with this hash is, whether or not it exists."""


def stored_image_uri(path: Path) -> str | None:
    """The picture at `path`, pixel for pixel if it is small; None where it is missing or no picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if max(image.size) <= MOST_PIXELS:
                return png_uri(path.read_bytes())
            small = image.copy()
    except (OSError, UnidentifiedImageError):
        return None
    return _encoded(small, "WEBP", quality=92)


def png_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def image_uri(image: Image.Image) -> str:
    """As PNG, scaled down where it is large."""
    return _encoded(image, "PNG")


def _encoded(image: Image.Image, format: str, **options: int) -> str:
    image.thumbnail((MOST_PIXELS, MOST_PIXELS))
    content = io.BytesIO()
    image.save(content, format=format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


RENTED: tuple[Kind, ...] = ("on-demand", "spot", "reserved")


def form_data(report: Report) -> dict[str, Any]:
    """JSON values: the answer of `kontext cost --json`, with the prices that a reader may choose, the peak that they
    must hold, the spread of the time saved and the records behind it; presets in the order of the page.
    """
    groups = [group for group in report.groups if group.group.runs]
    answer = as_json([group.cost for group in groups], report.prices, report.question)
    for values, group in zip(answer["groups"], groups, strict=True):
        priced = {preset["preset"]: preset for preset in values["presets"]}
        values |= {
            "title": group.title,
            "peak_bytes": max(
                (work.peak_bytes for work in group.cost.works if work.peak_bytes is not None), default=None
            ),
            "prices": [
                price_as_json(price, report.question.today)
                for kind in RENTED
                for price in report.prices.of_card(group.cost.card, kind)
            ],
            "typical": {
                kind: price.id for kind in RENTED if (price := report.prices.typical(group.cost.card, kind)) is not None
            },
            "presets": [
                priced[row.preset] | _preset(row.preset, group, report) for row in group.rows if row.preset in priced
            ],
        }
    return answer


def _preset(preset: str, group: GroupReport, report: Report) -> dict[str, Any]:
    cost, run_ids = group.cost.of(preset), group.group.run_ids(preset)
    time = cost.seconds_per_image if cost else None
    return {
        "saved_half_s_per_image": _saved_half_s(preset, group),
        "run_ids": run_ids,
        "time": fmt.seconds_estimate(time) if time else fmt.NOT_MEASURED,
        "time_range": (fmt.seconds_range(time) if time else None) or fmt.NO_INTERVAL,
        "records": [report.numbers[run_id] for run_id in run_ids],
    }


def _saved_half_s(preset: str, group: GroupReport) -> float | None:
    """Half width of the interval of the seconds saved per image, paired by round."""
    baseline, other = group.cost.work_of(BASELINE), group.cost.work_of(preset)
    if preset == BASELINE or baseline is None or baseline.work is None or other is None:
        return None
    half_s = paired_half_s(baseline, other)
    return None if half_s is None else half_s / baseline.work.images_per_call


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
