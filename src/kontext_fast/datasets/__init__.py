"""Items to edit, (input image, instruction) pairs: from a user's disk, from KontextBench, or from the shapes world."""

from __future__ import annotations

from pathlib import Path

from kontext_fast.datasets.base import Dataset
from kontext_fast.datasets.folder import read_folder, read_jsonl
from kontext_fast.datasets.kontextbench import metadata_of, read_kontextbench
from kontext_fast.datasets.tables import DELIMITERS, list_of, read_table
from kontext_fast.errors import InvalidInput


def read_dataset(path: Path) -> Dataset:
    """The data set at `path`: a JSONL, CSV or TSV file, a copy of KontextBench, or a folder of images with text files
    or with a list of them, as `imagefolder` has it.

    Raises InvalidInput where there is no usable item.
    """
    if path.is_file():
        return read_table(path) if path.suffix.lower() in DELIMITERS else read_jsonl(path)
    if not path.is_dir():
        raise InvalidInput(f"There is no data set {path}; give a JSONL or CSV file, or a folder.")
    if (metadata := metadata_of(path)) is not None:
        return read_kontextbench(metadata)
    listed = list_of(path)
    return read_folder(path) if listed is None else read_table(listed)
