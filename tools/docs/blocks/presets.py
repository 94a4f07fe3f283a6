"""The presets: what each is, what it does to images, and what was measured of that."""

from __future__ import annotations

from tools.docs.doc_context import DocContext
from tools.docs.presets_table import presets_table


def render(site: DocContext) -> str:
    """The table of the newest verification and of what a card ran; times of a CPU are nobody's headline."""
    verified = site.published.verifications[-1][1] if site.published.verifications else None
    return presets_table(verified, site.published.speed if site.card else None)
