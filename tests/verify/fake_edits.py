"""A data set on disk, for checkpoints other than tiny."""

from __future__ import annotations

import json
from pathlib import Path

from kontext_fast.datasets.shapes import held_out_dataset


def write_dataset(folder: Path, count: int) -> Path:
    """`count` pictures of the shapes world with their instructions, as any user's data set."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for item in held_out_dataset(count, 4).items:
        item.image.resize((64, 64)).save(folder / f"{item.id}.png")
        lines.append(json.dumps({"image": f"{item.id}.png", "instruction": item.instruction}))
    file = folder / "edits.jsonl"
    file.write_text("\n".join(lines))
    return file
