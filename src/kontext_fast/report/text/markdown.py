"""Tables in Markdown. Cells are Markdown already; plain words go through `documents.markdown` before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines of a table, without one at the end."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def bullets(entries: Iterable[str]) -> str:
    """Lines of a list."""
    return "\n".join(f"- {entry}" for entry in entries)


def paragraphs(parts: Iterable[str | None]) -> str:
    """What there is of `parts`, an empty line between two."""
    return "\n\n".join(part for part in parts if part)
