"""Charts are found by looking: every module in `charts` that defines `draw` is one, and nothing else names it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from kontext_fast.discovery import modules_with
from kontext_fast.errors import KontextError
from kontext_fast.records.schema import ResultFile
from kontext_fast.report import charts
from kontext_fast.report.verdicts import Verdicts

SECTIONS = ("speed", "sizes", "memory", "cold", "ablation", "quality", "cost")


@dataclass(frozen=True)
class Chart:
    """A drawn chart and the words that go with it."""

    path: Path | None
    """None where there was nothing to show; then no file is left at its place."""
    title: str
    """What it shows."""
    how_to_read: str
    takeaway: str
    """Computed from the same data as the picture; without a picture, why there is none."""
    alt: str
    section: str = SECTIONS[0]
    """Of the page, one of `SECTIONS`; set from the `SECTION` of its module."""


def draw_charts(result: ResultFile, folder: Path, verdicts: Verdicts | None = None) -> tuple[Chart, ...]:
    """Draw every chart into `folder` (the visualizations), in the order of the module names.

    A module may name the `SECTION` of the page in which its chart stands; else that is the first one. One that sets
    `SHOWS_VERDICTS` is also given what a verification says of the presets.
    Raises KontextError for a chart module without `draw`; what a module raises on import is not hidden.
    """
    drawn = []
    for name, module in modules_with(charts, "draw").items():
        given = {"verdicts": verdicts or {}} if getattr(module, "SHOWS_VERDICTS", False) else {}
        drawn.append(replace(module.draw(result, folder, **given), section=_section(module, name)))
    return tuple(drawn)


def _section(module: ModuleType, name: str) -> str:
    section: str = getattr(module, "SECTION", SECTIONS[0])
    if section not in SECTIONS:
        raise KontextError(f"The chart module {name} stands in {section!r}: choose one of {', '.join(SECTIONS)}.")
    return section
