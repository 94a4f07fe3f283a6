"""`verify_preset`: the verdict on one preset for a pipeline and items of the caller's own."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kontext_fast.datasets import read_dataset
from kontext_fast.datasets.base import Dataset
from kontext_fast.datasets.folder import read_pairs
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.presets import Preset
from kontext_fast.verify.analysis import analyze
from kontext_fast.verify.metric_rows import COLUMNS, MetricRow, items_to_decide, metric_rows
from kontext_fast.verify.request import Request
from kontext_fast.verify.run import OnProgress, verify
from kontext_fast.verify.verdict import Level, QualityVerdict


@dataclass(frozen=True, repr=False)
class PresetVerdict:
    """Whether a preset makes images worse, and the comparisons that say so. A notebook shows it as a table."""

    preset: str
    verdict: QualityVerdict
    rows: tuple[MetricRow, ...]
    """One per comparison that the verdict rests on."""
    not_measured: tuple[str, ...]
    """Metrics that could not be measured, with the reason."""

    @property
    def level(self) -> Level:
        return self.verdict.level

    @property
    def reason(self) -> str:
        return self.verdict.reason

    @property
    def passes(self) -> bool:
        """Whether the preset was shown to be harmless: identical, equivalent or non-inferior."""
        return self.level.passes

    def __repr__(self) -> str:
        table = [COLUMNS, *(row.cells() for row in self.rows)] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
        return "\n".join([self._headline(), *lines, *self._notes()])

    def _repr_html_(self) -> str:
        body = "".join(
            "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
            for tag, cells in (("th", COLUMNS), *(("td", row.cells()) for row in self.rows))
        )
        notes = "".join(f"<br><small>{html.escape(note)}</small>" for note in self._notes())
        return f"<p>{html.escape(self._headline())}{notes}</p>{f'<table>{body}</table>' if self.rows else ''}"

    def _headline(self) -> str:
        level = self.level
        name = level.meaning if level.value == level.meaning else f"{level.value} {level.meaning}"
        return f"{self.preset}: {name}. {self.reason}"

    def _notes(self) -> list[str]:
        items = items_to_decide(self.verdict, self.rows)
        return [*([f"Too few items to decide: try again with items={items}."] if items else []), *self.not_measured]


def verify_preset(
    pipe: Any,
    preset: str | Preset | Sequence[Optimization],
    dataset: Dataset | str | Path | Iterable[tuple[Any, str]],
    *,
    items: int = 100,
    seeds: int = 2,
    steps: int = 28,
    guidance: float = 2.5,
    seed: int = 0,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> PresetVerdict:
    """Test whether `preset` makes images of `pipe` worse, with whatever LoRA is merged into it.

    `dataset` are pairs of an image and an instruction, or the path of what `kontext verify --dataset` takes; `items` is
    how many are used at most. `weights` is a folder with the models of the learned metrics, `out` a new folder for the
    records and images, which are kept nowhere else. Makes some hundred images with the defaults; `resume` goes on with
    what `out` holds. The pipeline is as before afterwards. A preset that this machine refuses is not measured, with the
    reason. Raises InvalidInput, OutOfMemory, and Cancelled on Ctrl-C.
    """
    if isinstance(dataset, str | Path):
        dataset = read_dataset(Path(dataset))
    elif not isinstance(dataset, Dataset):
        dataset = read_pairs(dataset)
    if not isinstance(preset, str | Preset):
        preset = Preset("+".join(optimization.name for optimization in preset), "", tuple(preset))
    request = Request(
        presets=(preset,),
        pipe=pipe,
        dataset=dataset,
        items=items,
        seeds=seeds,
        steps=steps,
        guidance=guidance,
        seed=seed,
        weights=None if weights is None else Path(weights),
    )
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) if out is None else Path(out)
        analysis = analyze(verify(request, folder, resume=resume, command="verify_preset", on_progress=on_progress))
    (result,) = analysis.presets
    return PresetVerdict(
        result.preset,
        result.verdict,
        metric_rows(result.verdict, analysis.margins),
        tuple(f"{metric.name}: {metric.not_measured}" for metric in analysis.metrics if metric.not_measured),
    )
