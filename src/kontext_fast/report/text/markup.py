"""Tables and lists in Markdown, and plain words that stay plain in Markdown and in LaTeX.

Cells and entries are Markdown already; plain words go through `escape_markdown` before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

_LATEX: Final = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def escape_markdown(text: object) -> str:
    """For a table cell too: on one line."""
    return re.sub(r"([\\`*_\[\]<>|#~!])", r"\\\1", " ".join(str(text).split()))


def escape_latex(text: object) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(str(text).split()))


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
