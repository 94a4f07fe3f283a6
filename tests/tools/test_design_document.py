"""docs/design.md has the layers and folders that there are, and CONTRIBUTING.md sends to files that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def test_layers_are_those_of_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    section = DESIGN.partition("## Layers")[2].partition("\n## ")[0]
    listed = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in section.splitlines() if line.startswith("| `")]
    assert listed == [[name.strip() for name in row.split(":")] for row in layers if row != "__main__"]


def test_folders_are_those_of_the_repository() -> None:
    listed = re.findall(r"^(\w+)/", DESIGN.partition("## Folders")[2], re.MULTILINE)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"src", "scripts"}
    assert packages <= set(listed)
    assert [name for name in listed if not (ROOT / name).is_dir()] == []


def test_contributing_names_files_to_copy_from_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = re.findall(r"\| `([\w/]+)/[A-Z]+\.\w+` \(`(\w+\.\w+)`\)", text)
    assert len(files) == 11
    roots = (ROOT, ROOT / "src" / "kontext_fast")
    assert [name for name in files if not any((root / "/".join(name)).is_file() for root in roots)] == []
