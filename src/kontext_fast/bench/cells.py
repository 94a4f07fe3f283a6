"""The points that a suite measures: a product of axes, and sweeps that vary some of them around its centre."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.sizes import MULTIPLE, parse_size
from kontext_fast.records.schema import Cell, Mode

_T = TypeVar("_T")

NATIVE = "native"
"""The size that the checkpoint was made for."""


def _check_size(text: str) -> str:
    if text == NATIVE:
        return text
    try:
        width, height = parse_size(text)
    except InvalidInput as error:
        raise ValueError(str(error)) from None
    if min(width, height) <= 0 or width % MULTIPLE or height % MULTIPLE:
        raise ValueError(f"size {text!r} is not a positive multiple of {MULTIPLE} in width and height")
    return f"{width}x{height}"


def check_no_repeats(values: tuple[_T, ...]) -> tuple[_T, ...]:
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is listed twice")
    return values


Size = Annotated[str, AfterValidator(_check_size)]
Count = Annotated[int, Field(ge=1)]
Distinct = Annotated[tuple[_T, ...], Field(min_length=1), AfterValidator(check_no_repeats)]


class Sweep(BaseModel):
    """Further cells: the product of the axes given here; an axis that is not given stays at the suite's centre."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    priority: int = Field(ge=1)
    """A budget is spent on low numbers first; the suite's own cells come before all sweeps."""
    rounds: Count | None = None
    """None: as many as the suite, which are also the most."""
    modes: Distinct[Mode] | None = None
    sizes: Distinct[Size] | None = None
    steps: Distinct[Count] | None = None
    batches: Distinct[Count] | None = None


@dataclass(frozen=True)
class Tier:
    """Cells that are measured together: each process of the tier measures all of them, in this order."""

    name: str
    cells: tuple[Cell, ...]
    rounds: int


def cells_of(
    modes: Sequence[Mode], sizes: Sequence[str], steps: Sequence[int], batches: Sequence[int]
) -> tuple[Cell, ...]:
    """All combinations, the last axis fastest."""
    return tuple(
        Cell(mode=mode, size=size, steps=count, batch=batch)
        for mode, size, count, batch in product(modes, sizes, steps, batches)
    )


def tiers(own: tuple[Cell, ...], rounds: int, sweeps: Sequence[Sweep]) -> tuple[Tier, ...]:
    """The suite's own cells, whose first one is the centre, and then the sweeps by priority; no cell comes twice."""
    centre = own[0]
    found = [Tier("centre", own, rounds)]
    known = set(own)
    for sweep in sorted(sweeps, key=lambda sweep: sweep.priority):
        cells = cells_of(
            sweep.modes or (centre.mode,),
            sweep.sizes or (centre.size,),
            sweep.steps or (centre.steps,),
            sweep.batches or (centre.batch,),
        )
        new = tuple(cell for cell in cells if cell not in known)
        known.update(new)
        if new:
            found.append(Tier(sweep.name, new, min(sweep.rounds or rounds, rounds)))
    return tuple(found)
