"""What the fitted presets that come with the package came to on held-out edits, from their own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kontext_fast.optimizations import presets
from kontext_fast.optimizations.preset_file import read_provenance
from kontext_fast.report.text.markup import Markdown, code_span, table
from tools.docs.doc_context import DocContext

HEADER = ("preset", "fitted", "plain steps", "step_reuse", "UniPC", "28 steps", "fitted, of plain steps")


def render(_: DocContext) -> Markdown:
    """One row each: mean and median distance."""
    files = sorted(Path(presets.__file__).with_name("fitted").glob("*.toml"))
    return table(HEADER, (_cells(file) for file in files))


def _cells(file: Path) -> tuple[object, ...]:
    provenance = read_provenance(file)
    assert provenance is not None
    distances = provenance.scores["distances"]
    ratio = provenance.scores["ratio_of_fitted_to"]["plain steps"]
    low, high = ratio["interval"]
    return (
        code_span(file.stem),
        *(_figures(distances[name]) for name in ("fitted", "plain steps", "step_reuse", "UniPC")),
        _figures(provenance.baseline["in float32"]),
        f"{ratio['value']:.2f} ({low:.2f} to {high:.2f})",
    )


def _figures(values: dict[str, Any]) -> str:
    return f"{values['mean']:.4f}, {values['median']:.4f}"
