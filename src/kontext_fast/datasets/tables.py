"""Tables of edits with named columns: CSV and TSV files, and folders as `imagefolder` of Hugging Face's datasets has
them, which list their images in a `metadata.csv` or `metadata.jsonl`.

https://huggingface.co/docs/datasets/image_dataset: paths stand in the column `file_name`, or in columns
`NAME_file_name` where a row has several images.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kontext_fast.datasets.base import Dataset
from kontext_fast.datasets.folder import Entry, collect, decoded
from kontext_fast.errors import InvalidInput

DELIMITERS = {".csv": ",", ".tsv": "\t"}

_LISTS = ("metadata.csv", "metadata.jsonl")

_COLUMNS: Mapping[str, Sequence[str]] = {
    "image": ("image", "input", "input_image", "source", "source_image", "original", "original_image", "before"),
    "instruction": ("instruction", "edit_instruction", "edit_prompt", "edit", "prompt", "text"),
    "target": ("target", "target_image", "edited", "edited_image", "output", "output_image", "after"),
    "mask": ("mask", "mask_image"),
    "kind": ("kind", "category", "edit_type"),
    "input_caption": ("input_caption", "source_caption", "original_caption"),
    "output_caption": ("output_caption", "target_caption", "edited_caption"),
}
"""What is in a column, and the names that data sets of edits give it."""

_PATHS = ("image", "target", "mask")


def list_of(folder: Path) -> Path | None:
    """The file in `folder` that lists its images with their instructions; None where there is none."""
    for name in _LISTS:
        file = folder / name
        if file.is_file():
            rows = _rows(file)
            _, first = next(rows, (0, {}))
            if {"image", "instruction"} <= _meaning(first).keys():
                return file
    return None


def read_table(file: Path) -> Dataset:
    """The items of a table, with paths relative to it. Raises InvalidInput where it is unreadable or has no item."""
    name = file.parent.resolve().name if file.name in _LISTS else file.stem
    return collect(name, _entries(file), "write rows with the columns image and instruction")


def _entries(file: Path) -> Iterator[Entry | str]:
    unused: dict[str, None] = {}
    for number, row in _rows(file):
        meaning = _meaning(row)
        unused.update(dict.fromkeys(column for column in row if column not in meaning.values()))
        content = {part: row[column] for part, column in meaning.items() if row[column]}
        if wrong := next((part for part, value in content.items() if not isinstance(value, str)), None):
            yield f"line {number} is left out: the {wrong} is not a text."
        elif lacking := next((part for part in ("image", "instruction") if part not in content), None):
            yield f"line {number} is left out: it has no {lacking}."
        else:
            yield (
                f"line {number}",
                {part: file.parent / value if part in _PATHS else value for part, value in content.items()},
            )
    for column in unused:
        yield f"The column {column} is not used."


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table with the numbers of their lines. Raises InvalidInput."""
    try:
        text = decoded(file)
    except (OSError, UnicodeError):
        raise InvalidInput(f"{file} cannot be read; give an existing text file, for example in UTF-8.") from None
    try:
        if file.suffix == ".jsonl":
            for number, line in enumerate(text.splitlines(), 1):
                if line.strip():
                    row = json.loads(line)
                    yield number, row if isinstance(row, dict) else {}
        else:
            reader = csv.DictReader(
                io.StringIO(text, newline=""), delimiter=DELIMITERS[file.suffix.lower()], strict=True
            )
            for row in reader:
                yield reader.line_num, {column: value for column, value in row.items() if column}
    except (csv.Error, ValueError, RecursionError) as error:
        raise InvalidInput(f"{file} is not a table ({error}); write it again as {file.suffix[1:].upper()}.") from error


def _meaning(row: Mapping[str, Any]) -> dict[str, str]:
    """Which column has each part of an item. Raises InvalidInput where two may have the same."""
    meaning: dict[str, str] = {}
    for column in row:
        name = column.strip().lower().replace(" ", "_")
        name = "image" if name == "file_name" else name.removesuffix("_file_name")
        part = next((part for part, names in _COLUMNS.items() if name in names), None)
        if part is not None:
            if part in meaning:
                raise InvalidInput(
                    f"The columns {meaning[part]} and {column} may both be the {part}; rename one of them."
                )
            meaning[part] = column
    return meaning
