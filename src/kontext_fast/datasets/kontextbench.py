"""KontextBench: 1,026 instructions over base images in five categories, as its authors publish it.

Labs et al., "FLUX.1 Kontext", arXiv 2506.15742; the data set black-forest-labs/kontext-bench of the Hub, whose layout
is `test/metadata.jsonl` with the keys file_name (relative to it), instruction, category, key, image_idx, prompt_idx.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kontext_fast.datasets.base import Dataset
from kontext_fast.datasets.folder import collect, jsonl_entries

NAME = "kontext-bench"
METADATA = "metadata.jsonl"
CATEGORIES = (
    "Instruction Editing - Local",
    "Instruction Editing - Global",
    "Character Reference",
    "Style Reference",
    "Text Editing",
)
_REQUIRED = ("file_name", "instruction", "category")


def metadata_of(folder: Path) -> Path | None:
    """The metadata file of a KontextBench copy in `folder` or in its split `test`; None if it is no such copy."""
    for file in (folder / "test" / METADATA, folder / METADATA):
        if file.is_file() and _first_keys(file) >= set(_REQUIRED):
            return file
    return None


def read_kontextbench(metadata: Path) -> Dataset:
    """The items that `metadata` lists. Raises InvalidInput where it is unreadable or has no usable item."""
    return collect(NAME, jsonl_entries(metadata, _entry), "download black-forest-labs/kontext-bench again")


def _entry(line: Any, folder: Path) -> Mapping[str, Any]:
    if not isinstance(line, dict):
        raise ValueError("it is not a JSON object")
    for key in _REQUIRED:
        if not isinstance(line.get(key), str) or not line[key].strip():
            raise ValueError(f"it has no {key}")
    if line["category"] not in CATEGORIES:
        raise ValueError(f"there is no category {line['category']!r}")
    return {"image": folder / line["file_name"], "instruction": line["instruction"], "kind": line["category"]}


def _first_keys(file: Path) -> set[str]:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            first = json.loads(next(lines, "null"))
    except (OSError, ValueError):
        return set()
    return set(first) if isinstance(first, dict) else set()
