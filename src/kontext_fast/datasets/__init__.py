"""Items to edit, (input image, instruction) pairs: from a user's disk, from KontextBench, or from the shapes world."""

from __future__ import annotations

from pathlib import Path

from kontext_fast.datasets.base import Dataset
from kontext_fast.datasets.folder import read_folder, read_jsonl
from kontext_fast.datasets.kontextbench import metadata_of, read_kontextbench
from kontext_fast.datasets.tables import DELIMITERS, PARQUET, list_of, parquet_files, read_parquet, read_table
from kontext_fast.errors import InvalidInput


def read_dataset(path: Path) -> Dataset:
    """The data set at `path`: a JSONL, CSV, TSV or Parquet file, a copy of KontextBench, or a folder of images with
    text files, with a list of them, as `imagefolder` has it, or of Parquet files.

    Raises InvalidInput where there is no usable item, and Refused where reading Parquet needs a package.
    """
    if path.is_file() and path.suffix.lower() == PARQUET:
        return read_parquet([path], path.stem)
    if path.is_file():
        return read_table(path) if path.suffix.lower() in DELIMITERS else read_jsonl(path)
    if not path.is_dir():
        raise InvalidInput(f"There is no data set {path}; give a JSONL, CSV or Parquet file, or a folder.")
    if (metadata := metadata_of(path)) is not None:
        return read_kontextbench(metadata)
    if (listed := list_of(path)) is not None:
        return read_table(listed)
    parquet = parquet_files(path)
    return read_parquet(parquet, path.resolve().name) if parquet else read_folder(path)
