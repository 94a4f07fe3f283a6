"""The page of a report: a report and its charts in, one self-contained HTML text out."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from markupsafe import Markup

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.consistency import contradictions
from kontext_fast.analysis.names import plain_name
from kontext_fast.analysis.rows import Row
from kontext_fast.analysis.stages import STEP_KINDS
from kontext_fast.analysis.tiers import may_claim, shown_rows, tiers
from kontext_fast.cost import BILLINGS
from kontext_fast.cost.export import as_json, price_as_json
from kontext_fast.cost.prices import Kind
from kontext_fast.cost.work import paired_half_s
from kontext_fast.pipeline.images import data_url
from kontext_fast.records.names import is_peer, short_machine
from kontext_fast.records.schema import BASELINE, CONTROL
from kontext_fast.records.store import read_stored_image
from kontext_fast.report import templates
from kontext_fast.report.charting import SECTIONS, Chart
from kontext_fast.report.gallery import MOST_VERIFIED, Gallery, GalleryItem, GalleryPicture
from kontext_fast.report.model import GroupReport, Report
from kontext_fast.report.serving import batch_lines, serving_rows
from kontext_fast.report.text.answers import answers, choices, headline, subtitle

if TYPE_CHECKING:
    from PIL import Image


MOST_PIXELS = 512
"""Longest side of an inlined picture; larger ones are scaled down and the full ones stay in the result folder."""


class ImageFolder(Protocol):
    """Where images are stored: a result folder, or several."""

    def image_path(self, digest: str) -> Path:
        """Where the image with this hash is, whether or not it exists."""


def stored_image_uri(path: Path) -> str | None:
    """The stored picture at `path`, pixel for pixel if it is small; None where it is missing.

    Raises InvalidInput where it is not the picture that was recorded.
    """
    try:
        image = read_stored_image(path)
    except FileNotFoundError:
        return None
    if max(image.size) > MOST_PIXELS:
        return image_uri(image, "WEBP", quality=92)
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def image_uri(image: Image.Image, kind: str = "PNG", **options: int) -> str:
    """`image`, scaled down where it is large, as a data URI of a file in Pillow's format `kind`."""
    image.thumbnail((MOST_PIXELS, MOST_PIXELS))
    return data_url(image, kind, **options)


RENTED: tuple[Kind, ...] = ("on-demand", "spot", "reserved")


def form_data(report: Report) -> dict[str, Any]:
    """JSON values: the answer of `kontext cost --json`, with the prices that a reader may choose, the peak that they
    must hold and the spread of the time saved; presets in the order of the page.
    """
    groups = [group for group in report.groups if group.group.runs]
    shown = {id(group): {row.preset for row in shown_rows(group.group)} for group in groups}
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
                priced[row.preset] | _preset(row.preset, group) | {"shown": row.preset in shown[id(group)]}
                for row in group.rows
                if row.preset in priced
            ],
        }
    return answer


def _preset(preset: str, group: GroupReport) -> dict[str, Any]:
    cost = group.cost.of(preset)
    time = cost.seconds_per_image if cost else None
    return {
        "saved_half_s_per_image": _saved_half_s(preset, group),
        "time": fmt.seconds_estimate(time) if time else fmt.NOT_MEASURED,
        "time_range": (fmt.seconds_range(time) if time else None) or fmt.NO_INTERVAL,
    }


def _saved_half_s(preset: str, group: GroupReport) -> float | None:
    """Half width of the interval of the seconds saved per image, paired by round."""
    baseline, other = group.cost.work_of(BASELINE), group.cost.work_of(preset)
    if preset == BASELINE or baseline is None or baseline.work is None or other is None:
        return None
    half_s = paired_half_s(baseline, other)
    return None if half_s is None else half_s / baseline.work.images_per_call


SCRIPTS = ("cost.js", "compare.js", "page.js")
LINKS = {
    "results": "Results", "quality": "Quality", "sizes": "Sizes", "memory": "Memory", "serving": "Serving",
    "stages": "Stages", "cost": "Cost", "details": "Details",
}  # fmt: skip
"""Sections with their names in the line of links, which has to fit a phone."""


@dataclass(frozen=True)
class TierRow:
    """A row of the table that a page opens with."""

    row: Row
    name: str
    preset: str
    is_peer: bool
    claims: bool


@dataclass(frozen=True)
class PageTier:
    """Baseline and the best rival beside our presets that do the same work."""

    name: str
    rows: tuple[TierRow, ...]
    ours: tuple[str, ...]


def page_tiers(lead: GroupReport) -> tuple[PageTier, ...]:
    shown_tiers = []
    for number, tier in enumerate(tiers(lead.group)):
        rows = [lead.group.row(BASELINE) if number == 0 else None, tier.best_rival, *tier.ours]
        timed = [(row, row.time.mean.value) for row in rows if row and row.time]
        shown = [row for row, _ in sorted(timed, key=lambda pair: -pair[1])]
        shown_tiers.append(
            PageTier(
                tier.name,
                tuple(
                    TierRow(row, plain_name(row.preset), row.preset, is_peer(row.preset), may_claim(row))
                    for row in shown
                ),
                tuple(row.preset for row in tier.ours),
            )
        )
    return tuple(shown_tiers)


def main_chart(charts: Sequence[Chart]) -> Chart | None:
    """Quality against time where it is known, else the like beside the like, else the times."""
    order = ("frontier", "like_for_like", "speed")
    drawn = [chart for section in order for chart in charts if chart.section == section and chart.picture]
    return next(iter(drawn), None)


def render(report: Report, charts: Sequence[Chart], images: ImageFolder, quality_page: str | None = None) -> str:
    """The page as text. Pictures are read from `images`; one that is missing there is said to be. `quality_page` is
    where the page of the verification lies, from this page on."""

    def picture_uri(picture: GalleryPicture) -> str | None:
        return stored_image_uri(images.image_path(picture.image)) if picture.image else None

    lead = report.lead
    own = [chart for chart in charts if chart.machine in (None, report.machine)]
    measured = [group for group in report.groups if group.group.runs]
    context: dict[str, Any] = {
        "report": report,
        "headline": headline(lead),
        "subtitle": subtitle(report),
        "answers": [answer for answer in answers(report) if answer.section != "cost" or not _is_unpriced(lead)],
        "choices": choices(report),
        **chart_context(charts, own),
        "main_chart": main_chart(own),
        "not_drawn": [chart for chart in own if not chart.picture],
        "measured": bool(measured),
        "tiers": page_tiers(lead) if lead and measured else (),
        "others": [group for group in measured if group is not lead],
        "galleries": _galleries(report, images),
        "quality_page": quality_page,
        "serving": serving_rows(lead.group) if lead and measured else (),
        "batches": batch_lines(group.group for group in measured if group.group.machine == report.machine),
        "checked": [group for group in report.groups if group.checks],
        "doubts": contradictions(report.analysis),
        "caution": lead.caution if lead else None,
        "cautions": tuple(dict.fromkeys(c for group in report.groups[1:] if (c := group.caution) and c != lead.caution))
        if lead
        else (),
        "live": form_data(report),
        "billings": BILLINGS,
        "step_kinds": STEP_KINDS,
        "claims": lambda row: may_claim(row) or row.preset in (BASELINE, CONTROL) or row.time is None,
        "plain_name": plain_name,
        "short_machine": short_machine,
        "picture_uri": picture_uri,
    }
    text = script(SCRIPTS)
    return templates.render("page.html.j2", **context, links=LINKS, script=text, script_hash=script_hash(text))


def chart_context(charts: Sequence[Chart], own: Sequence[Chart] | None = None) -> dict[str, Any]:
    """What templates need to draw charts: those of `own`, or all, by their sections, and how each is drawn.
    `charts` are all that were written, those of other machines among them.
    """

    def drawn(chart: Chart, size: str) -> Markup:
        assert chart.picture is not None
        wide = chart.picture.half(chart.alt) if size == "half" else chart.picture.wide(chart.alt)
        return Markup(wide + chart.picture.narrow(chart.alt))

    def elsewhere(chart: Chart) -> list[tuple[str, Path]]:
        alike = [other for other in charts if other.module == chart.module and other is not chart and other.path]
        return [(short_machine(other.machine or "another machine"), other.path) for other in alike if other.path]

    shown = charts if own is None else own
    return {
        "charts": {name: [chart for chart in shown if chart.section == name and chart.picture] for name in SECTIONS},
        "main_chart": None,
        "drawn": drawn,
        "elsewhere": elsewhere,
        "beside": beside_reports,
    }


def script(names: Sequence[str]) -> str:
    """The scripts of a page as one, since its policy allows the one that has its hash."""
    folder = files("kontext_fast.report").joinpath("template")
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)


def script_hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _is_unpriced(lead: GroupReport | None) -> bool:
    return lead is not None and lead.cost.refusal is not None


def _galleries(report: Report, images: ImageFolder) -> list[tuple[Gallery, str]]:
    """Images of the benchmark itself, and those of the verification that the verdicts are of."""
    small = "Pictures larger than 512 pixels are scaled down here and stored whole."
    galleries = []
    lead = report.lead
    if lead is not None and lead.gallery.cards:
        shown, items = len(lead.gallery.cards), lead.gallery.items
        chosen = f"{shown} of {items} items, evenly spaced, whatever their results. " if shown < items else ""
        galleries.append((lead.gallery, f"{chosen}The first seed of each item, as the benchmark made it. {small}"))
    if report.samples.cards:
        # Stored results need not have every picture; those that have most of them come first.
        cards = sorted(report.samples.cards, key=lambda card: _missing(card, images))[:MOST_VERIFIED]
        where = next((verdict.where for verdict in report.verdicts.values()), "of a verification")
        words = f"{len(cards)} of {report.samples.items} edits ({where}), drawn whatever their results. {small}"
        galleries.append((Gallery(tuple(cards), report.samples.items), words))
    return galleries


def _missing(card: GalleryItem, images: ImageFolder) -> int:
    return sum(not (picture.image and images.image_path(picture.image).is_file()) for picture in card.pictures)


def beside_reports(chart: Path) -> str:
    """The way from `reports/` to a chart `visualizations/<folder>/<file>`."""
    return "/".join(("..", *chart.parts[-3:]))
