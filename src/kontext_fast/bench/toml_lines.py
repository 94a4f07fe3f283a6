"""Where in a TOML text a key was written, which `tomllib` does not say."""

from __future__ import annotations

import re

_HEADER = re.compile(r"^\s*\[\s*([\w.-]+)\s*\]")
_KEY = re.compile(r"^\s*([\w-]+)\s*=")


def line_of(text: str, key: str) -> int | None:
    """1-based line of the dotted `key`, of its section where it is missing there, None where neither is written.

    Knows plain keys and section headers, which is all that a suite has.
    """
    section, _, name = key.rpartition(".")
    current, header_line = "", None
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            current = header.group(1)
            if current == key:
                return number
            if current == section:
                header_line = number
        elif (match := _KEY.match(line)) and current == section and match.group(1) == name:
            return number
    return header_line
