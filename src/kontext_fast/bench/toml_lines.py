"""Where in a TOML text a key was written, which `tomllib` does not say."""

from __future__ import annotations

import re
from collections import Counter

_HEADER = re.compile(r"^\s*\[\s*([\w.-]+)\s*\]")
_ARRAY_HEADER = re.compile(r"^\s*\[\[\s*([\w.-]+)\s*\]\]")
_KEY = re.compile(r"^\s*([\w-]+)\s*=")


def line_of(text: str, key: str) -> int | None:
    """1-based line of the dotted `key`, of its section where it is missing there, None where neither is written.

    The second `[[sweeps]]` is `sweeps[1]`. Knows plain keys and section headers, which is all that a suite has.
    """
    section, _, name = key.rpartition(".")
    current, header_line = "", None
    seen: Counter[str] = Counter()
    for number, line in enumerate(text.splitlines(), start=1):
        if (header := _section(line, seen)) is not None:
            current = header
            if current == key:
                return number
            if current == section:
                header_line = number
        elif (match := _KEY.match(line)) and current == section and match.group(1) == name:
            return number
    return header_line


def _section(line: str, seen: Counter[str]) -> str | None:
    """Name of the section that starts on this line; those of an array are counted in `seen`."""
    if match := _ARRAY_HEADER.match(line):
        name = match.group(1)
        seen[name] += 1
        return f"{name}[{seen[name] - 1}]"
    match = _HEADER.match(line)
    return match.group(1) if match else None
