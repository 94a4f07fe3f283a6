"""Items to edit, (input image, instruction) pairs: from a user's disk, from KontextBench, or from the shapes world."""

from __future__ import annotations

from pathlib import Path

from kontext_fast.datasets.base import Dataset
from kontext_fast.datasets.folder import read_folder, read_jsonl
from kontext_fast.datasets.kontextbench import metadata_of, read_kontextbench
from kontext_fast.errors import InvalidInput


def read_dataset(path: Path) -> Dataset:
    """The data set at `path`: a JSONL file, a copy of KontextBench, or a folder of images with text files.

    Raises InvalidInput where there is no usable item.
    """
    if path.is_file():
        return read_jsonl(path)
    if not path.is_dir():
        raise InvalidInput(f"There is no data set {path}; give a JSONL file or a folder.")
    metadata = metadata_of(path)
    return read_folder(path) if metadata is None else read_kontextbench(metadata)
