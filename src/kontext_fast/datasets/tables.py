"""Tables of edits with named columns: CSV, TSV and Parquet files, and folders as Hugging Face's datasets has them.

https://huggingface.co/docs/datasets/image_dataset: an `imagefolder` lists its images in a `metadata.csv` or
`metadata.jsonl`, whose paths stand in the column `file_name`, or in columns `NAME_file_name` where a row has several
images. In Parquet, of which a data set has files in its folder or in `data`, an image is its bytes, its path, or a
struct of `bytes` and `path`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kontext_fast.datasets.base import Dataset
from kontext_fast.datasets.folder import Entry, collect, decoded
from kontext_fast.errors import InvalidInput, Refused

DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET: Final = ".parquet"

TABLES: Final = "pip install 'kontext-fast[tables]'"
"""What brings the package for Parquet."""

_LISTS = ("metadata.csv", "metadata.jsonl")

_COLUMNS: Mapping[str, Sequence[str]] = {
    "image": (
        "image",
        "input",
        "input_image",
        "source",
        "source_image",
        "source_img",
        "original",
        "original_image",
        "before",
    ),
    "instruction": ("instruction", "edit_instruction", "edit_prompt", "edit", "prompt", "text"),
    "target": ("target", "target_image", "target_img", "edited", "edited_image", "output", "output_image", "after"),
    "mask": ("mask", "mask_image", "mask_img"),
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


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a data set, in order, which are in its folder or in the one that the Hub names `data`."""
    return sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))


def read_parquet(files: Sequence[Path], name: str) -> Dataset:
    """The items of Parquet files. Raises InvalidInput where one is unreadable or none has an item, and Refused."""
    several = len(files) > 1
    entries = (_within(file.name, entry) if several else entry for file in files for entry in _entries(file))
    return collect(name, entries, "write rows with the columns image and instruction")


def _within(name: str, entry: Entry | str) -> Entry | str:
    return f"{name}, {entry}" if isinstance(entry, str) else (f"{name}, {entry[0]}", entry[1])


def read_table(file: Path) -> Dataset:
    """The items of a table, with paths relative to it. Raises InvalidInput where it is unreadable or has no item."""
    name = file.parent.resolve().name if file.name in _LISTS else file.stem
    return collect(name, _entries(file), "write rows with the columns image and instruction")


def _entries(file: Path) -> Iterator[Entry | str]:
    unused: dict[str, None] = {}
    for number, row in _rows(file):
        meaning = _meaning(row)
        unused.update(dict.fromkeys(column for column in row if column not in meaning.values()))
        content = {part: _encoded(row[column]) for part, column in meaning.items() if row[column]}
        where = f"{'row' if file.suffix.lower() == PARQUET else 'line'} {number}"
        if wrong := next((part for part, value in content.items() if not _is_value(part, value)), None):
            yield f"{where} is left out: the {wrong} is not a text."
        elif lacking := next((part for part in ("image", "instruction") if part not in content), None):
            yield f"{where} is left out: it has no {lacking}."
        else:
            paths = {part for part in _PATHS if isinstance(content.get(part), str)}
            yield where, {part: file.parent / value if part in paths else value for part, value in content.items()}
    for column in unused:
        yield f"The column {column} is not used."


def _encoded(value: Any) -> Any:
    """The bytes of an image that Hugging Face's datasets stored with its path; else its path; else `value`."""
    return value["bytes"] or value["path"] if isinstance(value, dict) and value.keys() == {"bytes", "path"} else value


def _is_value(part: str, value: Any) -> bool:
    return isinstance(value, str) or (part in _PATHS and isinstance(value, bytes))


def parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file. Raises InvalidInput where it is unreadable, Refused where that needs a package."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise Refused(f"Reading {file} needs the package pyarrow; run `{TABLES}`.") from None
    try:
        with ParquetFile(file if isinstance(file, Path) else io.BytesIO(file.read_bytes())) as table:
            # As few as hold the images of a moment.
            for batch in table.iter_batches(64):
                yield from batch.to_pylist()
    except (OSError, ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(f"{file} is no readable Parquet file ({reason}); write it again.") from error


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table with the numbers of their lines. Raises InvalidInput."""
    if file.suffix.lower() == PARQUET:
        yield from enumerate(parquet_rows(file), 1)
        return
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
