"""Presets as TOML files: optimizations in their order, with parameters; what `tuning` writes, and anyone may.

name = "mine"
summary = "our own forward in fp8"

[[optimizations]]
name = "engine"
precision = "fp8"

[[on_cuda]]
name = "text_graphs"
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.base import Effect, Optimization
from kontext_fast.optimizations.registry import build
from kontext_fast.toml_lines import TOMLDecodeError, line_of, parse_toml
from kontext_fast.validation import first_mistake


class Provenance(BaseModel):
    """What a fitted preset rests on. Pure, frozen data."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    precision: str
    """Of the blocks while it was fitted."""
    dtype: str | None = None
    """Of the pipeline then; None in files of an earlier version."""
    fitted_items: int
    chosen_items: int
    held_out_items: int
    grid_steps: int
    reference_steps: int
    scores: dict[str, Any]
    """On the held-out items; see `tuning.request.Point.as_data`."""
    baseline: dict[str, Any]
    """Baseline's own distances there."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
    summary: str = "a preset of a file"
    optimizations: list[dict[str, Any]]
    on_cuda: list[dict[str, Any]] = []
    provenance: Provenance | None = None


_Optimizations = tuple[Optimization, ...]


def read_preset(file: Path, built_in: Container[str]) -> tuple[str, str, _Optimizations, _Optimizations]:
    """Name, summary, optimizations, and those on CUDA alone, of the preset that `file` describes; no name is one of
    `built_in`.

    Raises InvalidInput, with the line of the first mistake.
    """
    text, described = _parsed(file)
    if described.name in built_in:
        raise InvalidInput(f"{_at(file, text, 'name')}: {described.name} is a built-in preset; choose another name.")
    optimizations = _built(file, text, "optimizations", described.optimizations)
    on_cuda = _built(file, text, "on_cuda", described.on_cuda)
    for index, optimization in enumerate(on_cuda):
        if optimization.effect is not Effect.EXACT:
            raise InvalidInput(
                f"{_at(file, text, f'on_cuda[{index}]')}: {optimization.name} changes images, so other devices would "
                "make others; move it to [[optimizations]]."
            )
    return described.name, described.summary, optimizations, on_cuda


def _built(file: Path, text: str, section: str, listed: Sequence[Mapping[str, Any]]) -> _Optimizations:
    optimizations: list[Optimization] = []
    for index, parameters in enumerate(listed):
        where = f"{section}[{index}]"
        name = parameters.get("name")
        if not isinstance(name, str):
            raise InvalidInput(f"{_at(file, text, where)}: this optimization has no name; see kontext presets.")
        try:
            optimizations.append(build(name, {key: value for key, value in parameters.items() if key != "name"}))
        except InvalidInput as error:
            wrong = next((key for key in parameters if key != "name" and key in str(error)), "name")
            raise InvalidInput(f"{_at(file, text, f'{where}.{wrong}')}: {error}") from error
    return tuple(optimizations)


def read_provenance(file: Path) -> Provenance | None:
    """What the preset of `file` rests on; None of one that nobody fitted. Raises InvalidInput as `read_preset`."""
    return _parsed(file)[1].provenance


def write_preset(
    file: Path,
    *,
    name: str,
    summary: str,
    optimizations: Sequence[Optimization],
    on_cuda: Sequence[Optimization] = (),
    provenance: Provenance | None = None,
) -> None:
    """Write `file`, whole or not at all."""
    lines = [f"name = {json.dumps(name)}", f"summary = {json.dumps(summary)}"]
    for section, listed in (("optimizations", optimizations), ("on_cuda", on_cuda)):
        for optimization in listed:
            lines += ["", f"[[{section}]]", f"name = {json.dumps(optimization.name)}"]
            lines += _table(optimization.parameters(), section)
    if provenance is not None:
        lines += ["", "[provenance]", *_table(provenance.model_dump(mode="json"), "provenance")]
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text("\n".join(lines) + "\n")
    unfinished.replace(file)


def _parsed(file: Path) -> tuple[str, _File]:
    try:
        text = file.read_text()
    except OSError as error:
        raise InvalidInput(f"The preset file {file} cannot be read ({error.strerror}); check the path.") from error
    try:
        return text, _File.model_validate(parse_toml(text))
    except TOMLDecodeError as error:
        raise InvalidInput(f"{file} is not valid TOML ({error}); correct it.") from error
    except ValidationError as error:
        location, complaint = first_mistake(error)
        key = ".".join(map(str, location))
        raise InvalidInput(f"{_at(file, text, key)}: {key}: {complaint}.") from error


def _at(file: Path, text: str, key: str) -> str:
    line = line_of(text, key)
    return str(file) if line is None else f"{file}, line {line}"


def _table(values: Mapping[str, Any], section: str) -> list[str]:
    """Plain values first, since whatever follows the header of a sub-table belongs to it; None is left out."""
    lines = [
        f"{_key(key)} = {json.dumps(value)}"
        for key, value in values.items()
        if value is not None and not isinstance(value, Mapping)
    ]
    for key, value in values.items():
        if isinstance(value, Mapping):
            inner = f"{section}.{_key(key)}"
            lines += ["", f"[{inner}]", *_table(value, inner)]
    return lines


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)
