"""Markdown and LaTeX in which words from anywhere stay plain words: whatever is not known to be markup is escaped.

`Markdown` and `Latex` are text that is markup already. Tables, lists and paragraphs take those as they are and escape
any other text, and so does every expression of a template, so that nothing depends on a call that might be forgotten.
"""

from __future__ import annotations

import re
import unicodedata
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
    "`": r"\textasciigrave{}",
}
_MARKDOWN_LETTERS: Final = re.compile(r"[\\`*\[\]<>|#~!]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")
"""An ampersand means something before the name of a letter, and an underscore beside a space or a sign."""
_LINE_START: Final = re.compile(r"([-+=]+(?=\s|$)|\d{1,9}(?=[.)](?:\s|$)))")
"""What begins a list or underlines a heading."""


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()

    def format(self, *values: object, **named: object) -> Markdown:
        """Do as `str.format`; values that are not Markdown are escaped."""
        return Markdown(
            super().format(*map(markdown, values), **{name: markdown(value) for name, value in named.items()})
        )


class Latex(str):
    """Text that is LaTeX already."""

    __slots__ = ()


def plain(text: object) -> str:
    """The words of `text` on one line, without control characters."""
    letters = ("" if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in _spaced(str(text)))
    return " ".join("".join(letters).split())


def _spaced(text: str) -> str:
    return re.sub(r"\s", " ", text)


def markdown(text: object) -> Markdown:
    """Any text as Markdown that shows it letter by letter, on one line; also in a cell of a table."""
    if isinstance(text, Markdown):
        return text
    escaped = _MARKDOWN_LETTERS.sub(r"\\\g<0>", plain(text))
    if begins := _LINE_START.match(escaped):
        at = begins.end() if begins[0][0].isdigit() else 0
        escaped = f"{escaped[:at]}\\{escaped[at:]}"
    return Markdown(escaped)


def latex(text: object) -> Latex:
    """Any text as LaTeX that shows it letter by letter, on one line; two hyphens do not become a dash."""
    if isinstance(text, Latex):
        return text
    escaped = "".join(_LATEX.get(letter, letter) for letter in plain(text))
    return Latex(re.sub(r"([-',])(?=\1)", r"\1{}", escaped))


def code_span(text: object) -> Markdown:
    """Any text as code in Markdown, between more backticks than it has in a row; not for a cell with a `|`."""
    words = plain(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", words)), default=0))
    # A space beside each fence is not shown, and keeps a backtick at the edge of the text apart from it.
    space = " " if words.startswith("`") or words.endswith("`") else ""
    return Markdown(f"{fence}{space}{words}{space}{fence}") if words else Markdown("")


def latex_code(text: object) -> Latex:
    """Any text in a typewriter font, which may be broken after a comma."""
    return Latex(r"\texttt{" + latex(text).replace(",", r",\allowbreak ") + "}")


def link(label: object, target: str) -> Markdown:
    """`[label](target)`; `target` is a path or an address."""
    return Markdown(f"[{markdown(label)}]({_address(target)})")


def picture(alt: object, target: str) -> Markdown:
    """`![alt](target)`."""
    return Markdown(f"!{link(alt, target)}")


_UNSAFE: Final = re.compile(r"[\s()<>\\`|\"'*\[\]]")


def _address(target: str) -> str:
    """Without letters that would end it."""
    return _UNSAFE.sub(_percent_encoded, plain(target))


def _percent_encoded(letter: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in letter[0].encode())


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> Markdown:
    """Lines of a table, without one at the end."""
    lines = [[markdown(cell) for cell in cells] for cells in (header, *rows)]
    lines.insert(1, [Markdown("---")] * len(header))
    return Markdown("\n".join(f"| {' | '.join(cells)} |" for cells in lines))


def bullets(entries: Iterable[object]) -> Markdown:
    """Lines of a list."""
    return Markdown("\n".join(f"- {markdown(entry)}" for entry in entries))


def paragraphs(parts: Iterable[object | None]) -> Markdown:
    """What there is of `parts`, an empty line between two."""
    return Markdown("\n\n".join(markdown(part) for part in parts if part))


def joined(parts: Iterable[object]) -> Markdown:
    """`parts` on one line, with commas."""
    return Markdown(", ".join(markdown(part) for part in parts))
