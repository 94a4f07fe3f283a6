"""Passages of a document that are rendered from records: they stand between two marks, and all else is left alone.

<!-- records: headline -->
whatever was rendered last
<!-- /records: headline -->
"""

from __future__ import annotations

import re
from collections.abc import Callable

from kontext_fast.errors import InvalidInput

_MARK = re.compile(r"^<!-- (/?)records: ([a-z_]+) -->[ \t]*$", re.MULTILINE)


def inject(text: str, render: Callable[[str], str], source: str) -> str:
    """`text` with every marked passage replaced by `render(its name)`.

    `source` is what messages call the document. Raises InvalidInput for a passage that does not end, ends twice or has
    another one inside of it; whatever `render` raises for a name that it does not know is not hidden.
    """
    parts: list[str] = []
    position, open_name = 0, None
    for mark in _MARK.finditer(text):
        closes, name = bool(mark[1]), mark[2]
        if closes != (open_name is not None) or (closes and name != open_name):
            line = text.count("\n", 0, mark.start()) + 1
            raise InvalidInput(f"{source}, line {line}: the passage {open_name or name} is not closed before it.")
        if closes:
            parts.append(f"\n{render(name).strip()}\n")
        else:
            parts.append(text[position : mark.end()])
        position, open_name = (mark.start(), None) if closes else (mark.end(), name)
    if open_name is not None:
        raise InvalidInput(f"{source}: the passage {open_name} does not end; add <!-- /records: {open_name} -->.")
    return "".join([*parts, text[position:]])


def block_names(text: str) -> list[str]:
    """The names of all passages, in order."""
    return [mark[2] for mark in _MARK.finditer(text) if not mark[1]]


def without_passages(text: str) -> str:
    """What people wrote: `text` with every passage empty."""
    return inject(text, lambda _: "", "the document")
