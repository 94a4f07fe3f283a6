"""The picture that README begins with, as SVG files through which the page is seen: wide and narrow, light and dark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kontext_fast.records.store import write_atomically
from kontext_fast.report.charts.benchmark import like_for_like
from kontext_fast.report.model import Report
from kontext_fast.report.plots.style import FILE, PHONE_FILE, Picture
from kontext_fast.report.text.answers import headline

LIGHT, DARK = "hero.svg", "hero-dark.svg"
NARROW_LIGHT, NARROW_DARK = "hero-narrow.svg", "hero-narrow-dark.svg"
"""For screens on which the letters of the wide ones would be too small to read."""


@dataclass(frozen=True)
class Hero:
    picture: Picture
    alt: str
    caption: str


def hero(report: Report | None) -> Hero | None:
    """Of the group that the report leads with; None where no rival was measured."""
    panel = like_for_like.plotted(report) if report else None
    if panel is None or report is None:
        return None
    words = f"{headline(report.lead)}: like against like"
    single = "; a star marks fewer than three processes" if any(row.time.interval is None for row in panel.rows) else ""
    caution = report.lead.caution if report.lead else None
    caption = f"{panel.title}, text encoders and VAE included{single}. {caution or ''}".strip()
    return Hero(like_for_like.picture(words, panel), like_for_like.draw(report).alt, caption)


def write_hero(report: Report | None, folder: Path) -> None:
    """Into `folder`, that of the visualizations; nothing where there is no hero."""
    shown = hero(report)
    if shown is None:
        return
    for names, canvas in (((LIGHT, DARK), FILE), ((NARROW_LIGHT, NARROW_DARK), PHONE_FILE)):
        for name, dark in zip(names, (False, True), strict=True):
            write_atomically(folder / name, shown.picture.svg_file(shown.alt, dark=dark, canvas=canvas).encode())
