"""TOML that people write: read with every mistake as one kind of error, and the line of a key, which `tomllib` does not
report.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from tomllib import TOMLDecodeError
from typing import Any

__all__ = ["TOMLDecodeError", "line_of", "parse_toml"]

_HEADER = re.compile(r"^\s*\[\s*([\w.-]+)\s*\]")
_ARRAY_HEADER = re.compile(r"^\s*\[\[\s*([\w.-]+)\s*\]\]")
_KEY = re.compile(r"^\s*([\w-]+)\s*=")


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a text. Raises TOMLDecodeError for what is no TOML, and for values in values without end."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise TOMLDecodeError("values are nested too deeply") from None


def line_of(text: str, key: str) -> int | None:
    """The 1-based line of the dotted `key`; of its section if the key is missing there; None if both are missing.

    The second `[[sweeps]]` is `sweeps[1]`. Only plain keys and section headers are understood.
    """
    section, _, name = key.rpartition(".")
    current, header_line = "", None
    arrays: Counter[str] = Counter()
    for number, line in enumerate(text.splitlines(), start=1):
        if (header := _section(line, arrays)) is not None:
            current = header
            if current == key:
                return number
            if current == section:
                header_line = number
        elif (match := _KEY.match(line)) and current == section and match.group(1) == name:
            return number
    return header_line


def _section(line: str, arrays: Counter[str]) -> str | None:
    """Name of the section that starts on this line; sections of an array are counted in `arrays`."""
    if match := _ARRAY_HEADER.match(line):
        name = match.group(1)
        arrays[name] += 1
        return f"{name}[{arrays[name] - 1}]"
    match = _HEADER.match(line)
    return match.group(1) if match else None
