"""Documents for a blog, a paper and a business case, rendered from the same story as the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from kontext_fast.cost import money
from kontext_fast.records.schema import BASELINE, CONTROL
from kontext_fast.report import format as write
from kontext_fast.report.audience import Audience
from kontext_fast.report.business import business_case
from kontext_fast.report.charting import Chart
from kontext_fast.report.costs import crossing_words
from kontext_fast.report.story import Story

TEMPLATES: Final[dict[Audience, str]] = {
    "blog": "blog.md.j2",
    "paper": "paper.tex.j2",
    "business": "business.md.j2",
}

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
}


def document(story: Story, audience: Audience) -> str:
    """The text of any document but the page."""
    environment = Environment(
        loader=PackageLoader("kontext_fast.report", "template"),
        # Neither language is HTML: what comes from records goes through the filter of its language instead.
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters.update(md=markdown, tex=latex)
    environment.globals.update(
        write=write,
        money=money,
        baseline=BASELINE,
        control=CONTROL,
        crossing_words=crossing_words,
        beside=beside_document,
        verdicts=story.verdicts,
    )
    return environment.get_template(TEMPLATES[audience]).render(
        story=story, lead=story.lead, hero=hero(story), case=business_case(story)
    )


def markdown(text: object) -> str:
    """Plain words that stay plain in Markdown, in a table cell too."""
    return re.sub(r"([\\`*_\[\]<>|#~!])", r"\\\1", " ".join(str(text).split()))


def latex(text: object) -> str:
    """Plain words that stay plain in LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(str(text).split()))


def hero(story: Story) -> Chart | None:
    """The summary of what is gained where there is one, else the first picture; None where none was drawn."""
    drawn = [(chart, chart.path.name) for chart in story.charts if chart.path is not None]
    summaries = [chart for chart, name in drawn if name.endswith("_summary.png")]
    return next(iter(summaries or [chart for chart, _ in drawn]), None)


def beside_document(chart: Path) -> str:
    """From `reports/` to a chart `visualizations/<folder>/<file>`."""
    return "/".join(("..", *chart.parts[-3:]))
