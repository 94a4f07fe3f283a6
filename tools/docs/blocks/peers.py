"""Every peer: what it is, and where it is published."""

from __future__ import annotations

from urllib.parse import urlsplit

from kontext_fast.bench.peers import discover_peers
from kontext_fast.optimizations.presets import Preset, find_preset
from kontext_fast.records.schema import BASELINE
from kontext_fast.report.text.markup import Markdown, code_span, link, table
from tools.docs.doc_context import DocContext

HEADER = ("preset", "what it is", "source")


def render(context: DocContext) -> Markdown:
    """One row each, after `baseline`, which is the eager peer."""
    return table(HEADER, (_cells(preset) for preset in (find_preset(BASELINE), *discover_peers().values())))


def _cells(preset: Preset) -> tuple[str, str, str]:
    source = preset.source or ""
    url = urlsplit(source)
    label = "/".join(url.path.split("/")[1:3]) if url.hostname == "github.com" else url.hostname
    return code_span(preset.name), Markdown(preset.summary), link(label, source)
