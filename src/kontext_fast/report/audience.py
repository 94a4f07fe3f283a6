"""Whom a report is for, and the file that each of them gets below `reports/`."""

from __future__ import annotations

from typing import Final, Literal

Audience = Literal["page", "blog", "paper", "business"]

DOCUMENTS: Final[dict[Audience, str]] = {
    "page": "index.html",
    "blog": "blog.md",
    "paper": "paper.tex",
    "business": "business.md",
}
