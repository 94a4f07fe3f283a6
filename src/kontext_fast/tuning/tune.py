"""`tune`: a solver fitted to the weights of a pipeline for each number of evaluations, proven on held-out items."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kontext_fast.datasets import read_dataset
from kontext_fast.datasets.base import Dataset, Item
from kontext_fast.datasets.folder import content_id
from kontext_fast.discovery import unknown_name
from kontext_fast.errors import Cancelled, InvalidInput
from kontext_fast.optimizations.fitted_for import FittedFor
from kontext_fast.optimizations.preset_file import Provenance, write_preset
from kontext_fast.optimizations.techniques.solver import FittedSolver
from kontext_fast.pipeline.images import to_rgb
from kontext_fast.records.lock import locked_folder
from kontext_fast.records.store import write_atomically
from kontext_fast.tuning.parts import Parts, split
from kontext_fast.tuning.proof import Verdict, as_data
from kontext_fast.tuning.request import Point, TuneRequest, TuneResult
from kontext_fast.tuning.run import Tuning
from kontext_fast.tuning.stored_runs import Progress
from kontext_fast.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

RESULT_FILE = "tuning.json"
FIT_ITEMS, HELD_OUT_ITEMS = 64, 100
"""What is taken where nothing is said."""


def tune(
    pipe: Any,
    items: Parts | Dataset | str | Path | Iterable[Item | tuple[Any, str]],
    folder: str | Path,
    *,
    fit_items: int = FIT_ITEMS,
    held_out: int = HELD_OUT_ITEMS,
    checkpoint: str = "these weights",
    loras: Sequence[str] = (),
    resume: bool = False,
    command: str = "kontext_fast.tune",
    say: Callable[[str], object] = lambda _: None,
    on_progress: Progress | None = None,
    **options: Any,
) -> TuneResult:
    """Fit solvers to the weights of `pipe`, which is not accelerated, and write `folder`/N.toml per passing number N.

    `items` are edits like those that the preset is for: the path of a data set, or pairs of image and instruction.
    `held_out` of them prove, `fit_items` others are fitted to and chosen by. `options` are fields of `TuneRequest`,
    such as evaluations=(7, 10), as_accurate=True or precision="fp8". `checkpoint` and `loras` are what messages and
    files call the weights. `say` gets a sentence with the work ahead, `on_progress` the stage and its evaluations.
    `folder`/work holds what was computed, so that `resume` goes on after a stop at any moment, to the same files.
    Raises GateFailed where the items are too few to tell, InvalidInput, Refused, OutOfMemory or Cancelled.
    """
    for name in options:
        if name not in TuneRequest.__dataclass_fields__:
            raise InvalidInput(unknown_name("option", name, sorted(TuneRequest.__dataclass_fields__)))
    request, folder = TuneRequest(**options), Path(folder)
    parts = items if isinstance(items, Parts) else split(_dataset(items), items=fit_items, held_out=held_out)
    with locked_folder(folder, command):
        try:
            tuning = Tuning(pipe, parts, request, folder, resume=resume, say=say, on_progress=on_progress)
            fitted_for = FittedFor(
                checkpoint=checkpoint,
                weights=tuning.weights,
                loras=tuple(loras),
                target=request.target,
                steps=request.steps,
                guidance=(request.guidance, request.guidance),
                sizes=tuple(sorted({tuning.size_of(item) for item in parts.fit.items})),
            )
            result = TuneResult(folder, request)
            result.facts = {
                "kontext_fast_version": __version__,
                "checkpoint": checkpoint,
                "loras": list(loras),
                "precision": request.precision,
                "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
                "steps": request.steps,
                "guidance": request.guidance,
                "sizes": list(fitted_for.sizes),
                "as_accurate": request.as_accurate,
                "items": {name: len(part) for name, part in vars(parts).items()},
            }

            def write(point: Point) -> None:
                """Whoever stops a long tuning has the points that it reached."""
                if point.verdict is Verdict.PASSES and (point.as_accurate or not request.as_accurate):
                    result.files.append(_written(point, result, fitted_for, parts))
                write_atomically(folder / RESULT_FILE, _stored(result))

            try:
                tuning.run(result, write)
            finally:
                # Where no number passed, what was asked of the held-out items is there all the same.
                if result.asked:
                    write_atomically(folder / RESULT_FILE, _stored(result))
        except KeyboardInterrupt:
            raise Cancelled(
                f"The tuning was interrupted; go on with the same options and --resume (resume=True) in {folder}."
            ) from None
    return result


def _stored(result: TuneResult) -> bytes:
    return (json.dumps({**result.as_data(), "samples": result.samples()}) + "\n").encode()


def _written(point: Point, result: TuneResult, fitted_for: FittedFor, parts: Parts) -> Path:
    request = result.request
    provenance = Provenance(
        precision=point.mixture.words,
        dtype=result.facts["dtype"],
        fitted_items=len(parts.fit),
        chosen_items=len(parts.choose),
        held_out_items=len(parts.held_out),
        grid_steps=request.grid,
        reference_steps=request.reference,
        scores=point.as_data(result.baseline),
        baseline=as_data(result.baseline),
    )
    file = result.folder / f"{point.evaluations}.toml"
    write_preset(
        file,
        name="-".join(["tuned", _slug(fitted_for.checkpoint), str(point.evaluations)]),
        summary=f"{point.evaluations} evaluations, fitted to {fitted_for.checkpoint}",
        optimizations=(
            *point.mixture.optimizations,
            FittedSolver(fitted=point.solver, fitted_for=fitted_for),
        ),
        on_cuda=point.mixture.preset.on_cuda,
        provenance=provenance,
    )
    return file


def _slug(checkpoint: str) -> str:
    """The last part of the name, as the name of a preset may be."""
    return re.sub(r"[^a-z0-9_.]+", "-", checkpoint.lower().rpartition("/")[2]).strip("-.")


@dataclass(frozen=True)
class _Pair:
    """An item of a caller's own image and instruction."""

    image: Image
    instruction: str
    kind = open = target = mask = input_caption = output_caption = None

    @cached_property
    def id(self) -> str:
        return content_id(self.image, self.instruction)


def _dataset(items: Any) -> Dataset:
    if isinstance(items, Dataset):
        return items
    if isinstance(items, str | Path):
        return read_dataset(Path(items))
    own: dict[str, Item] = {}
    for item in items:
        if isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[1], str):
            item = _Pair(to_rgb(item[0]), item[1])
        elif not hasattr(item, "instruction"):
            raise InvalidInput('Each item is a pair such as ("photo.jpg", "make the car red").')
        own.setdefault(item.id, item)
    return Dataset("your items", [own[key] for key in sorted(own)])
