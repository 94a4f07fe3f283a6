"""Charts are discovered: every module of `charts.benchmark` and `charts.verification` is one; nothing else names it.

A module defines `draw(report) -> Chart`, the `FILE` that its picture becomes in the folder of visualizations, and the
`SECTION` of the page in which it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from kontext_fast.discovery import modules_with
from kontext_fast.errors import KontextError
from kontext_fast.records.names import slugs_of
from kontext_fast.records.store import write_atomically
from kontext_fast.report.charts import benchmark, verification
from kontext_fast.report.model import Report
from kontext_fast.report.plots.style import Picture
from kontext_fast.report.verification import VerificationReport

SECTIONS: Mapping[str, str] = {
    "frontier": "quality against time",
    "like_for_like": "presets beside the rivals that do the same work",
    "speed": "times and factors of all presets",
    "quality": "scores and distances",
    "sizes": "sizes and step counts",
    "memory": "peak memory",
    "serving": "what clients of a server waited",
    "cold": "the start of a process",
    "stages": "where the time of a call goes",
    "ablation": "what each optimization is worth",
    "cost": "what it costs and saves",
    "summary": "for posts and slides; the page says the same in words",
}
"""What the charts of each section are about, in the order of the page."""


@dataclass(frozen=True)
class Chart:
    """A chart and the words that go with it."""

    title: str
    """What it shows."""
    how_to_read: str
    takeaway: str
    """Computed from the same data as the picture, and its headline; without a picture, why there is none."""
    alt: str
    """Short: the numbers are in the tables."""
    picture: Picture | None
    """None where there is nothing to show."""
    html: str | None = None
    """A page to explore the same data."""
    source: str = ""
    """What it was measured on, and how often."""
    machine: str | None = None
    """Set with the section and the path when it is written; None for a verification and where nothing was measured."""
    section: str = ""
    """A key of `SECTIONS`, from the `SECTION` of its module."""
    path: Path | None = None
    """Of the written picture; a page has the same path with the suffix `.html`."""
    module: str = ""


def not_drawn(title: str, how_to_read: str, reason: str) -> Chart:
    """A chart without a picture; `reason` is a clause that says what was not measured."""
    return Chart(title, how_to_read, f"Not drawn: {reason}.", alt=f"None: {reason}.", picture=None)


def write_charts(report: Report, folder: Path) -> tuple[Chart, ...]:
    """Draw all charts of a benchmark into `folder` (the visualizations), in the order of the page, and remove those
    that have nothing to show any more. Every machine has files of its own: those of the one that the report leads with
    have the plain names. Records of a verification have the charts of both.

    Raises KontextError for a module without `draw` or in no section; what a module raises on import is not hidden.
    """
    charts = [
        chart
        for module in modules_with(benchmark, "draw").values()
        for chart in _write_of_machines(module, report, folder)
    ]
    if report.verification is not None:
        charts += _write_verification(report.verification, folder)
    return _in_order(charts)


def write_verification_charts(report: VerificationReport, folder: Path) -> tuple[Chart, ...]:
    """Do as `write_charts`, with the charts of a verification alone."""
    return _in_order(_write_verification(report, folder))


def _write_of_machines(module: ModuleType, report: Report, folder: Path) -> list[Chart]:
    """The chart of the leading machine, drawn or not, and of every other one that has something to show."""
    views = report.by_machine()
    slugs = slugs_of([view.machine for view in views])
    drawn = []
    for number, (view, slug) in enumerate(zip(views, slugs, strict=True)):
        chart = replace(module.draw(view), machine=view.machine)
        if number == 0 or chart.picture is not None:
            drawn.append((chart, _file_name(module.FILE, slug, leads=number == 0)))
    return _write(module, drawn, folder)


def _write_verification(report: VerificationReport, folder: Path) -> list[Chart]:
    modules = modules_with(verification, "draw").values()
    return [chart for module in modules for chart in _write(module, [(module.draw(report), module.FILE)], folder)]


def _file_name(pattern: str, slug: str, *, leads: bool) -> str:
    """A star is the machine; without one the machine is added to all names but the leading one's."""
    if "*" in pattern:
        return pattern.replace("*", slug)
    stem, dot, suffix = pattern.rpartition(".")
    return pattern if leads else f"{stem}_{slug}{dot}{suffix}"


def _in_order(charts: list[Chart]) -> tuple[Chart, ...]:
    order = list(SECTIONS)
    return tuple(sorted(charts, key=lambda chart: order.index(chart.section)))


def _section(module: ModuleType) -> str:
    section: str = module.SECTION
    if section not in SECTIONS:
        names = ", ".join(SECTIONS)
        raise KontextError(f"The chart {module.__name__} is in section {section!r}; choose one of {names}.")
    return section


def _write(module: ModuleType, charts: Sequence[tuple[Chart, str]], folder: Path) -> list[Chart]:
    section, contents = _section(module), {}
    for chart, name in charts:
        path = folder / name
        if chart.picture is not None:
            contents[path] = chart.picture.png()
        if chart.html is not None:
            contents[path.with_suffix(".html")] = chart.html.encode()
    stem, _, suffix = module.FILE.rpartition(".")
    patterns = (
        [module.FILE] if "*" in module.FILE else [module.FILE, f"{stem}.html", f"{stem}_*.{suffix}", f"{stem}_*.html"]
    )
    for earlier in (file for pattern in patterns for file in folder.glob(pattern)):
        if earlier not in contents:
            earlier.unlink()
    for file, content in contents.items():
        write_atomically(file, content)
    return [
        replace(
            chart,
            section=section,
            path=None if chart.picture is None else folder / name,
            module=module.__name__.rpartition(".")[2],
        )
        for chart, name in charts
    ]
