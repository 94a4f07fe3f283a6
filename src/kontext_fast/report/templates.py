"""Pages in HTML and documents in Markdown and LaTeX, in which every expression of a template is escaped."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined
from markupsafe import Markup

from kontext_fast.analysis import format as fmt
from kontext_fast.records.schema import BASELINE, CONTROL
from kontext_fast.report.text import costs
from kontext_fast.report.text.markup import code_span, latex, latex_code, markdown, picture


def render(template: str, **context: Any) -> str:
    """The text of a file of `template/` with `context` filled in."""
    language = template.removesuffix(".j2").rpartition(".")[2]
    return _environment(language).get_template(template).render(context)


_ESCAPES: Mapping[str, Callable[[object], str]] = {"md": markdown, "tex": latex}
_CODE: Mapping[str, Callable[[object], str]] = {"md": code_span, "tex": latex_code}


@cache
def _environment(language: str) -> Environment:
    environment = Environment(
        loader=PackageLoader("kontext_fast.report", "template"),
        # Jinja escapes as HTML what is no Markup yet; in other languages the text is escaped, as Markup, before that.
        autoescape=True,
        finalize=partial(_escaped, _ESCAPES[language]) if language in _ESCAPES else None,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    if language in _CODE:
        environment.filters["code"] = _CODE[language]
    environment.filters["picture"] = picture
    environment.filters["shell"] = shlex.quote
    environment.globals.update(fmt=fmt, costs=costs, baseline=BASELINE, control=CONTROL)
    return environment


def _escaped(escape: Callable[[object], str], value: object) -> object:
    """What a macro returns is Markup, since all of it was escaped inside; an undefined value has to raise."""
    return value if isinstance(value, Markup | Undefined) else Markup(escape(value))
