"""The rows of a manifest, each of which is one edit: a JSONL, CSV, TSV or Parquet file with named columns.

`image` and `instruction` say what is edited and how, `output` where the edit goes in the output folder, and every
option of an edit may have a column of its own; where a row leaves one empty, the option of the command holds. Paths of
images and LoRAs are relative to the manifest. A row that cannot be used is a `BadRow`, and stops no other one.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from kontext_fast.cli.options import names, one_preset, parse_lora
from kontext_fast.cli.session import ImageJob, Setup, numbered, setup_for_pictures
from kontext_fast.datasets.folder import decoded
from kontext_fast.datasets.tables import DELIMITERS, parquet_rows
from kontext_fast.errors import InvalidInput, KontextError
from kontext_fast.pipeline.edit import DIFFUSERS_NAMES, EditRequest
from kontext_fast.pipeline.images import ImageFile
from kontext_fast.pipeline.sizes import parse_size
from kontext_fast.records.addresses import is_address, place, reached

Row = Mapping[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row of which no edit can be made."""

    row: int
    """Its number in the manifest, from 1."""
    values: Row
    """As far as they could be read."""
    reason: str
    """One sentence."""


@dataclass(frozen=True)
class Manifest:
    """What a manifest asks for."""

    work: Sequence[tuple[Setup, Sequence[ImageJob]]]
    """By how the pipeline is to be set up, in the order of the first row of each."""
    bad: Sequence[BadRow]
    unused: Sequence[str]
    """Columns that mean nothing here."""


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """The options of the command, which hold for rows that do not say otherwise."""

    request: EditRequest
    """With any instruction where `has_instruction` is False."""
    has_instruction: bool
    checkpoint: str | None
    preset: str
    lora: Sequence[str]
    device: str | None
    elsewhere: bool = False
    """As `setup_for_pictures` takes it."""


def read_manifest(file: Path, folder: Path, defaults: Defaults) -> Manifest:
    """The edits of `file`, which go to `folder`.

    Raises InvalidInput where the file is unreadable or has no row, Refused where reading Parquet needs a package, and
    what `setup_for_pictures` raises where that leaves no row over.
    """
    columns: dict[str, str | None] = {}
    work: dict[Setup, list[ImageJob]] = {}
    outputs: dict[Path, int] = {}
    setups: dict[tuple[Any, ...], Setup | KontextError] = {}
    bad: list[BadRow] = []
    for number, row in enumerate(read_rows(file), 1):
        values: dict[str, Any] = {}
        try:
            _read_values(row, columns, values)
            request = _request(values, file.parent, defaults.request, has_instruction=defaults.has_instruction)
            setup = _setup(values, file.parent, defaults, setups)
            job = ImageJob(request[0], _output(values, request[0], folder, number), request[1], row=number)
            if (other := outputs.setdefault(job.file.path.resolve(), number)) != number:
                raise InvalidInput(f"The output {job.file.path} is that of row {other}, too; give each row its own.")
            work.setdefault(setup, []).append(job)
        except (KontextError, ValueError) as error:
            bad.append(BadRow(number, values, str(error)))
    if not work and not bad:
        raise InvalidInput(f"{file} has no rows; write rows with the columns image and instruction.")
    refused = [setup for setup in setups.values() if isinstance(setup, KontextError)]
    if not work and refused:
        raise refused[0]
    return Manifest(list(work.items()), bad, [column for column, name in columns.items() if name is None])


def read_rows(file: Path) -> Iterator[Row | str]:
    """The rows of a table in order; of a line that is none, a sentence. Raises InvalidInput and Refused."""
    kind = file.suffix.lower()
    if kind == ".parquet":
        yield from parquet_rows(file)
        return
    if kind not in (".jsonl", *DELIMITERS):
        raise InvalidInput(f"{file} is no manifest that can be read; give a .jsonl, .csv, .tsv or .parquet file.")
    try:
        with reached(file):
            text = decoded(file)
    except (OSError, UnicodeError):
        raise InvalidInput(f"{file} cannot be read; give an existing text file, for example in UTF-8.") from None
    if kind == ".jsonl":
        yield from map(_json_row, filter(str.strip, text.splitlines()))
        return
    try:
        for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=DELIMITERS[kind], strict=True):
            # Of more cells than columns, DictReader keeps the rest under None.
            yield row if None not in row else "The row has more cells than the table has columns; quote its commas."
    except csv.Error as error:
        raise InvalidInput(f"{file} is not a table ({error}); write it again as {kind[1:].upper()}.") from error


def _json_row(line: str) -> Row | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "The row is not valid JSON; write one object in each line."
    return row if isinstance(row, dict) else "The row is not a JSON object; write one object in each line."


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"The {name} {value!r} is not a text; write one.")
    return value


def _whole(name: str, value: object) -> int:
    # Tables of floats hold whole numbers with a point: a column with gaps is one.
    number = _number(name, value)
    if number != int(number):
        raise InvalidInput(f"The {name} {value!r} is not a whole number; write one.")
    return int(value) if isinstance(value, int | str) and str(value).strip().isdigit() else int(number)


def _number(name: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidInput(f"The {name} {value!r} is not a number; write one.")
    return number


def _several(name: str, value: object) -> tuple[str, ...]:
    texts = value if isinstance(value, list | tuple) else [value]
    return names(_text(name, text) for text in texts) or ()


_COLUMNS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    **dict.fromkeys(("image", "instruction", "output", "negative", "size", "checkpoint", "preset"), _text),
    **dict.fromkeys(("steps", "seed"), _whole),
    **dict.fromkeys(("guidance", "true_cfg"), _number),
    "lora": _several,
}
"""How the value of a column is read."""
_ALIASES: Final[Mapping[str, str]] = {
    **{theirs: ours for theirs, ours in DIFFUSERS_NAMES.items() if ours in _COLUMNS},
    **{"file_name": "image", "out": "output"},
}


def _read_values(row: Row | str, columns: dict[str, str | None], values: dict[str, Any]) -> None:
    """Put what a row says into `values`, and what each column means into `columns`."""
    if isinstance(row, str):
        raise InvalidInput(row)
    mistakes: list[InvalidInput] = []
    for column, value in row.items():
        if column not in columns:
            name = column.strip().lower().replace("-", "_").replace(" ", "_")
            name = _ALIASES.get(name, name)
            columns[column] = name if name in _COLUMNS else None
        meaning = columns[column]
        if meaning is None or value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            continue
        try:
            values[meaning] = _COLUMNS[meaning](meaning.replace("_", " "), value)
        except InvalidInput as error:
            mistakes.append(error)
    if mistakes:
        raise mistakes[0]


def _request(values: Row, home: Path, default: EditRequest, *, has_instruction: bool) -> tuple[Path, EditRequest]:
    """The input image of a row, and what is to be done with it once its pixels are read."""
    if "image" not in values:
        raise InvalidInput("The row has no image; write its path into the column image.")
    if "instruction" not in values and not has_instruction:
        raise InvalidInput("The row has no instruction; write one into the column instruction.")
    options = {
        name: values[name] for name in ("instruction", "steps", "seed", "guidance", "negative") if name in values
    }
    if "true_cfg" in values:
        options["true_cfg"] = values["true_cfg"]
    if "size" in values:
        options["size"] = parse_size(values["size"])
    image = home / values["image"] if not is_address(values["image"]) else place(values["image"])
    # Each look elsewhere is a request: whether such an image is there is seen when it is read.
    if isinstance(image, Path) and not image.is_file():
        raise InvalidInput(f"There is no image {image}; check the path.")
    return image, replace(default, **options)


def _setup(values: Row, home: Path, defaults: Defaults, known: dict[tuple[Any, ...], Setup | KontextError]) -> Setup:
    """How the pipeline of a row is set up; each kind is checked once."""
    loras = tuple(defaults.lora)
    if "lora" in values:
        # Weights are read from this machine's paths alone.
        home = home if isinstance(home, Path) else Path()
        loras = tuple(f"{home / path}:{strength:g}" for path, strength in map(parse_lora, values["lora"]))
    preset = values.get("preset", defaults.preset)
    key = (values.get("checkpoint", defaults.checkpoint), preset, loras)
    if key not in known:
        try:
            known[key] = setup_for_pictures(
                key[0], one_preset([preset]), loras, defaults.device, elsewhere=defaults.elsewhere
            )
        except KontextError as error:
            known[key] = error
    setup = known[key]
    if isinstance(setup, KontextError):
        raise setup
    return setup


def _output(values: Row, image: Path, folder: Path, number: int) -> ImageFile:
    """Where the edit of a row goes: the numbers of rows keep names apart."""
    name = values.get("output") or numbered(Path(f"{image.stem}.edited.png"), number).name
    path = folder / name
    if path.resolve() == image.resolve():
        raise InvalidInput(f"The edit of {image} would replace it; give another output.")
    return ImageFile(path)
