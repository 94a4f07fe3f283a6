"""The picture that README begins with, for light and dark pages: our presets beside the best rival at equal work."""

from __future__ import annotations

from html import escape

from kontext_fast.report.text.markup import Markdown, paragraphs
from tools.docs.doc_context import NOTHING, DocContext
from tools.docs.hero import DARK, LIGHT, hero


def render(context: DocContext) -> Markdown:
    """`render_repository` writes the two files."""
    shown = hero(context.report) if context.headline else None
    if shown is None:
        return paragraphs([NOTHING])
    light, dark = (f"{context.to_root}visualizations/{name}" for name in (LIGHT, DARK))
    both = Markdown(
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{escape(shown.alt)}" src="{light}"></picture>'
    )
    return paragraphs([both, Markdown("<sub>{}</sub>").format(shown.caption)])
