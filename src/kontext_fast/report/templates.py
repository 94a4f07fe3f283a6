"""The one Jinja environment, for pages in HTML and documents in Markdown and LaTeX."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kontext_fast.analysis import format as fmt
from kontext_fast.records.schema import BASELINE, CONTROL
from kontext_fast.report.text import costs
from kontext_fast.report.text.markup import escape_latex, escape_markdown


def render(template: str, **context: Any) -> str:
    """The text of a file of `template/` with `context` filled in."""
    return _environment().get_template(template).render(context)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("kontext_fast.report", "template"),
        # In other languages words from records go through the filter of the language instead.
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters.update(md=escape_markdown, tex=escape_latex)
    environment.globals.update(fmt=fmt, costs=costs, baseline=BASELINE, control=CONTROL)
    return environment
