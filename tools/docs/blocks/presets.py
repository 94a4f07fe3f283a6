"""The presets: what each is, what it does to images, and what was measured of that."""

from __future__ import annotations

from kontext_fast.report.text.markup import Markdown
from tools.docs.doc_context import DocContext
from tools.docs.presets_table import presets_table


def render(context: DocContext) -> Markdown:
    """The table of the newest verification and of what a card ran; times of a CPU are never the headline."""
    groups = [group.group for group in context.groups] if context.headline else []
    return presets_table(context.verification, groups)
