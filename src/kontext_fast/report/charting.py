"""Charts are discovered: every module of `charts.benchmark` and `charts.verification` is one; nothing else names it.

A module defines `draw(report) -> Chart`, the `FILE` that its picture becomes in the folder of visualizations, and the
`SECTION` of the page in which it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from kontext_fast.discovery import modules_with
from kontext_fast.errors import KontextError
from kontext_fast.records.store import write_atomically
from kontext_fast.report.charts import benchmark, verification
from kontext_fast.report.model import Report
from kontext_fast.report.verification import VerificationReport


@dataclass(frozen=True)
class PageSection:
    """A section of the page that has charts."""

    heading: str
    link: str
    """Its name in the line of links, which has to fit a phone."""
    intro: str | None = None
    """The macro of `parts.html.j2` that stands before the charts."""
    table: str | None = None
    """The macro of `parts.html.j2` that shows one group, below the charts."""
    table_heading: str | None = None

    @property
    def is_of_charts_alone(self) -> bool:
        """Then it appears only where it has a chart, drawn or not."""
        return self.intro is None and self.table is None


SECTIONS: Mapping[str, PageSection] = {
    "speed": PageSection("Speed", "Speed", table="stages_table", table_heading="Where the time goes"),
    "sizes": PageSection("Sizes and steps", "Sizes"),
    "memory": PageSection("Peak memory and energy", "Memory", table="memory_table"),
    "cold": PageSection("Cold: loading and the first call", "Cold start", intro="cold_intro", table="cold_table"),
    "ablation": PageSection("Which optimization does what", "Ablation"),
    "quality": PageSection("Quality: the images", "Quality", intro="verdict_list", table="gallery_of"),
    "frontier": PageSection("Quality against time", "Frontier"),
    "cost": PageSection("Cost", "Cost", intro="cost_form"),
}
"""In the order of the page."""


@dataclass(frozen=True)
class Chart:
    """A chart and the words that go with it."""

    title: str
    """What it shows."""
    how_to_read: str
    takeaway: str
    """Computed from the same data as the picture; without a picture, why there is none."""
    alt: str
    png: bytes | None
    """None where there is nothing to show."""
    html: str | None = None
    """A page to explore the same data."""
    name: str = ""
    """Replaces the star in the `FILE` of its module."""
    section: str = ""
    """A key of `SECTIONS`, from the `SECTION` of its module; set, like the path, when it is written."""
    path: Path | None = None
    """Of the written picture; a page has the same path with the suffix `.html`."""


def write_charts(report: Report, folder: Path) -> tuple[Chart, ...]:
    """Draw all charts of a benchmark into `folder` (the visualizations), in the order of the page, and remove those
    that have nothing to show any more. Records of a verification have the charts of both.

    Raises KontextError for a module without `draw` or in no section; what a module raises on import is not hidden.
    """
    charts = _write_all(benchmark, report, folder)
    if report.verification is not None:
        charts += _write_all(verification, report.verification, folder)
    return _in_order(charts)


def write_verification_charts(report: VerificationReport, folder: Path) -> tuple[Chart, ...]:
    """As `write_charts`, for the charts of a verification alone."""
    return _in_order(_write_all(verification, report, folder))


def _write_all(package: ModuleType, report: Report | VerificationReport, folder: Path) -> list[Chart]:
    return [
        _write(module.draw(report), module.FILE, _section(module), folder)
        for module in modules_with(package, "draw").values()
    ]


def _in_order(charts: list[Chart]) -> tuple[Chart, ...]:
    order = list(SECTIONS)
    return tuple(sorted(charts, key=lambda chart: order.index(chart.section)))


def _section(module: ModuleType) -> str:
    section: str = module.SECTION
    if section not in SECTIONS:
        names = ", ".join(SECTIONS)
        raise KontextError(f"The chart {module.__name__} is in section {section!r}; choose one of {names}.")
    return section


def _write(chart: Chart, pattern: str, section: str, folder: Path) -> Chart:
    path = folder / pattern.replace("*", chart.name)
    contents = {path: chart.png, path.with_suffix(".html"): chart.html.encode() if chart.html else None}
    earlier = [*folder.glob(pattern), *folder.glob(pattern.removesuffix(".png") + ".html")]
    for file in earlier:
        if contents.get(file) is None:
            file.unlink()
    for file, content in contents.items():
        if content is not None:
            write_atomically(file, content)
    return replace(chart, section=section, path=None if chart.png is None else path)
