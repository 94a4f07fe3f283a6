"""Every suite that ships with the package, and what it measures."""

from __future__ import annotations

from kontext_fast.bench import bundled_suites
from kontext_fast.bench.suites import read_suite
from kontext_fast.report.text.markup import Markdown, code_span, table
from tools.docs.doc_context import DocContext

HEADER = ("suite", "what it measures")


def render(context: DocContext) -> Markdown:
    """One row each, from the files themselves."""
    return table(HEADER, ((code_span(name), read_suite(name).resolve("hub").summary) for name in bundled_suites()))
