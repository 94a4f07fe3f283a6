"""Suites: what a benchmark measures, as validated data from TOML files.

A suite measures a product of axes (presets, sizes, steps, ...), and sweeps that vary some of them around its centre.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from kontext_fast.bench import SUITES, bundled_suites
from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.load import sources
from kontext_fast.pipeline.sizes import MULTIPLE, parse_size
from kontext_fast.records.schema import Cell, CompileCache, Mode
from kontext_fast.toml_lines import TOMLDecodeError, line_of, parse_toml
from kontext_fast.validation import first_mistake

_T = TypeVar("_T")

NATIVE = "native"
"""The size that the checkpoint was trained for."""


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


def _check_no_repeats(values: tuple[_T, ...]) -> tuple[_T, ...]:
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is listed twice")
    return values


Size = Annotated[str, AfterValidator(_check_size)]
Count = Annotated[int, Field(ge=1)]
Distinct = Annotated[tuple[_T, ...], Field(min_length=1), AfterValidator(_check_no_repeats)]


class Sweep(BaseModel):
    """Further cells: the product of these axes; an axis that is None has the value of the suite's centre."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    priority: int = Field(ge=1)
    """A budget is spent on low numbers first; the suite's own cells come before all sweeps."""
    rounds: Count | None = None
    """None: as many as the suite has, which is also the maximum."""
    modes: Distinct[Mode] | None = None
    sizes: Distinct[Size] | None = None
    steps: Distinct[Count] | None = None
    batches: Distinct[Count] | None = None


@dataclass(frozen=True)
class Tier:
    """Cells that are measured together: every process of the tier measures all of them, in this order."""

    name: str
    cells: tuple[Cell, ...]
    rounds: int


class Suite(BaseModel):
    """What is run on one checkpoint: its own cells, the product of its axes, and then its sweeps."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    summary: str = ""
    presets: Distinct[str]
    ablate: Annotated[tuple[str, ...], AfterValidator(_check_no_repeats)] = ()
    """Presets that are also run with each of their optimizations alone and without each of them."""
    peers: Annotated[tuple[str, ...], AfterValidator(_check_no_repeats)] = ()
    """Presets that are measured at the suite's own cells and left out of its sweeps."""
    control: bool = True
    """Run baseline a second time under another name: the A/A control, which limits what this benchmark can claim."""
    rounds: Count
    """Blocks of the randomized design; the process is the unit of replication."""
    items: Count
    calls: Count
    """Measured calls per process and cell; they cycle through the items."""
    max_warmup: int = Field(ge=0)
    """Maximum number of calls after the first one that are not measured."""
    stable_within: float = Field(ge=0, lt=1)
    """Warm-up ends early when two consecutive calls differ by less than this fraction."""
    modes: Distinct[Mode] = ("edit",)
    sizes: Distinct[Size]
    """`native` or "WIDTHxHEIGHT" in pixels."""
    steps: Distinct[Count]
    batches: Distinct[Count] = (1,)
    sweeps: tuple[Sweep, ...] = ()
    compile_caches: Distinct[CompileCache] = ("user",)
    """Each preset is run once with each of them; `warm` reads what `cold` left, so it needs `cold`."""
    guidance: float = Field(ge=0)
    deadline_s: float = Field(gt=0)
    """Of one process, loading and compilation included."""
    seed: int = Field(ge=0)

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The suite's own cells, of which the first is the centre, and then the sweeps by priority, without duplicates.

        A budget is spent on them in this order.
        """
        own = _cells(self.modes, self.sizes, self.steps, self.batches)
        centre, known = own[0], set(own)
        tiers = [Tier("centre", own, self.rounds)]
        for sweep in sorted(self.sweeps, key=lambda sweep: sweep.priority):
            cells = _cells(
                sweep.modes or (centre.mode,),
                sweep.sizes or (centre.size,),
                sweep.steps or (centre.steps,),
                sweep.batches or (centre.batch,),
            )
            if new := tuple(cell for cell in cells if cell not in known):
                tiers.append(Tier(sweep.name, new, min(sweep.rounds or self.rounds, self.rounds)))
            known.update(new)
        return tuple(tiers)

    @field_validator("compile_caches")
    @classmethod
    def _warm_needs_cold(cls, caches: tuple[CompileCache, ...]) -> tuple[CompileCache, ...]:
        if "warm" in caches and "cold" not in caches:
            raise ValueError('"warm" needs "cold", which fills the cache; list both')
        return caches

    @field_validator("calls")
    @classmethod
    def _every_item_is_measured(cls, calls: int, values: ValidationInfo) -> int:
        items = values.data.get("items", 0)
        if calls < items:
            raise ValueError(f"{calls} calls cannot measure {items} items; raise calls or lower items")
        return calls

    @property
    def sha256(self) -> str:
        """The hash of everything that affects what is run, which name and summary do not."""
        content = self.model_dump(mode="json", exclude={"name", "summary"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def override(self, **changes: Any) -> Suite:
        """The same suite with some values replaced; None leaves a value as it is. Raises InvalidInput."""
        values = {name: value for name, value in changes.items() if value is not None}
        if "items" in values and "calls" not in values:
            values["calls"] = max(self.calls, values["items"])
        try:
            return Suite.model_validate({**self.model_dump(), **values})
        except ValidationError as error:
            location, message = first_mistake(error)
            raise InvalidInput(f"{'.'.join(map(str, location)) or 'suite'}: {message}.") from None


class SuiteFile:
    """A suite as it is written: values for every checkpoint, and overrides per kind of checkpoint."""

    def __init__(self, text: str, source: str) -> None:
        """`source` is the name of the file in messages. Raises InvalidInput that names the line."""
        self._text = text
        self._source = source
        try:
            content = parse_toml(text)
        except TOMLDecodeError as error:
            raise InvalidInput(f"{source} is not valid TOML: {error}.") from None
        kinds = {source.kind for source in sources()}
        self._sections = {kind: content.pop(kind) for kind in sorted(kinds & content.keys())}
        self._common = content
        for kind in (None, *self._sections):
            self._resolve(kind)

    def resolve(self, kind: str) -> Suite:
        """The suite for one kind of checkpoint."""
        return self._resolve(kind if kind in self._sections else None)

    def _resolve(self, kind: str | None) -> Suite:
        section = self._sections[kind] if kind else {}
        if not isinstance(section, dict):
            raise self._mistake((str(kind),), "write it as a section in brackets")
        for fixed in {"name", "summary"} & section.keys():
            raise self._mistake((str(kind), fixed), "a suite has one value for all checkpoints; move it to the top")
        try:
            return Suite.model_validate({**self._common, **section})
        except ValidationError as error:
            location, message = first_mistake(error)
            in_section = kind is not None and (not location or location[0] in section)
            raise self._mistake((kind, *location) if in_section and kind else location, message) from None

    def _mistake(self, location: tuple[str | int, ...], message: str) -> InvalidInput:
        key = ".".join(part for part in location if isinstance(part, str))
        line = line_of(self._text, _indexed(location)) or line_of(self._text, key)
        place = self._source if line is None else f"{self._source}, line {line}"
        return InvalidInput(f"{place}: {key}: {message}." if key else f"{place}: {message}.")


def read_suite(name_or_path: str) -> SuiteFile:
    """A bundled suite by its name, or a TOML file by its path. Raises InvalidInput."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if name_or_path not in bundled_suites():
            raise InvalidInput(
                f"There is no suite {name_or_path!r}; choose {' or '.join(bundled_suites())}, or give a .toml file."
            )
        path = SUITES / f"{name_or_path}.toml"
    try:
        return SuiteFile(path.read_text(encoding="utf-8-sig"), path.name)
    except (OSError, UnicodeDecodeError):
        raise InvalidInput(f"The suite {name_or_path} cannot be read; give an existing TOML text file.") from None


def _cells(
    modes: Sequence[Mode], sizes: Sequence[str], steps: Sequence[int], batches: Sequence[int]
) -> tuple[Cell, ...]:
    """All combinations, the last axis fastest."""
    return tuple(
        Cell(mode=mode, size=size, steps=count, batch=batch)
        for mode, size, count, batch in product(modes, sizes, steps, batches)
    )


def _indexed(location: tuple[str | int, ...]) -> str:
    """`("sweeps", 1, "steps", 0)` as `sweeps[1].steps`: the location of a key, not of a value in its list."""
    while location and isinstance(location[-1], int):
        location = location[:-1]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")
