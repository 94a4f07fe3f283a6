"""The picture that README begins with: our presets beside the best rival at equal work, for every screen and scheme."""

from __future__ import annotations

from html import escape

from kontext_fast.report.text.markup import Markdown, paragraphs
from tools.docs.doc_context import NOTHING, DocContext
from tools.docs.hero import DARK, LIGHT, NARROW_DARK, NARROW_LIGHT, hero

NARROW, IN_DARK = "(max-width: 600px)", "(prefers-color-scheme: dark)"


def render(context: DocContext) -> Markdown:
    """`render_repository` writes the files."""
    shown = hero(context.report) if context.headline else None
    if shown is None:
        return paragraphs([NOTHING])
    # The first source whose condition holds is shown.
    sources = "".join(
        f'<source media="{condition}" srcset="{context.to_root}visualizations/{name}">'
        for condition, name in (
            (f"{NARROW} and {IN_DARK}", NARROW_DARK),
            (NARROW, NARROW_LIGHT),
            (IN_DARK, DARK),
        )
    )
    picture = Markdown(
        f'<picture>{sources}<img alt="{escape(shown.alt)}" src="{context.to_root}visualizations/{LIGHT}"></picture>'
    )
    return paragraphs([picture, Markdown("<sub>{}</sub>").format(shown.caption)])
