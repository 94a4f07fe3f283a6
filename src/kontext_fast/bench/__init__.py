"""Measures presets against each other, each run in a process of its own. Importing it costs nothing, for the CLI."""

from __future__ import annotations

from pathlib import Path
from typing import Final

SUITES: Final = Path(__file__).parent / "suites"
"""The folder of the suites that ship with the package: one TOML file each, found by listing it."""


def bundled_suites() -> list[str]:
    """Names of the suites that ship with the package, in alphabetical order."""
    return sorted(file.stem for file in SUITES.glob("*.toml"))
