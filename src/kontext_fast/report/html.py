"""The page: a story in, one self-contained HTML text out. `format` writes the numbers, the template the rest."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from kontext_fast.cost import money
from kontext_fast.records.schema import BASELINE, CONTROL
from kontext_fast.records.store import ResultStore
from kontext_fast.report import format as write
from kontext_fast.report.costs import crossing_words
from kontext_fast.report.environment import environment_facts
from kontext_fast.report.gallery import Picture
from kontext_fast.report.images import chart_uri, data_uri
from kontext_fast.report.live import live_data
from kontext_fast.report.stages import STEP_KINDS
from kontext_fast.report.story import Story
from kontext_fast.report.takeaways import takeaways, title

HEADINGS: Mapping[str, str] = {
    "speed": "Speed",
    "sizes": "Sizes and steps",
    "memory": "Peak memory and energy",
    "cold": "Cold: loading and the first call",
    "ablation": "Which optimization does what",
    "quality": "Quality: the images",
    "cost": "Cost",
}
"""Of every section of `charting.SECTIONS`, in the order of the page."""

SHORT: Mapping[str, str] = {
    "speed": "Speed",
    "sizes": "Sizes",
    "memory": "Memory",
    "cold": "Cold start",
    "ablation": "Ablation",
    "quality": "Quality",
    "cost": "Cost",
}
"""The same for the line of links, which has to fit a phone."""

SCRIPTS = ("cost.js", "compare.js")


def render(story: Story, store: ResultStore) -> str:
    """The page as text. Pictures are read from `store`; one that is missing there is said to be."""

    def picture_uri(picture: Picture) -> str | None:
        return data_uri(store.image_path(picture.image)) if picture.image else None

    environment = Environment(
        loader=PackageLoader("kontext_fast.report", "template"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(
        write=write,
        money=money,
        baseline=BASELINE,
        control=CONTROL,
        step_kinds=STEP_KINDS,
        picture_uri=picture_uri,
        chart_uri=chart_uri,
        plain=_plain,
        interactive_beside=_interactive_beside,
        crossing_words=crossing_words,
        question=story.costs.question,
        run_numbers=story.numbers,
        verdicts=story.verdicts,
    )
    script = "\n".join(files(__package__).joinpath("template", name).read_text(encoding="utf-8") for name in SCRIPTS)
    return environment.get_template("page.html.j2").render(
        story=story,
        title=title(story.lead),
        takeaways=takeaways(story.lead, story.costs.question, story.verdicts),
        short=SHORT,
        sections=story.sections,
        headings={name: title for name, title in HEADINGS.items() if _has_something(name, story)},
        charts={name: [chart for chart in story.charts if chart.section == name] for name in HEADINGS},
        live=live_data(story),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        environment_facts=environment_facts(story.result.records),
    )


def _has_something(name: str, story: Story) -> bool:
    """Sections that are made of charts alone appear where there is such a chart, drawn or not."""
    return name not in ("sizes", "ablation") or any(chart.section == name for chart in story.charts)


def _plain(number: float) -> str:
    """As an input field holds it: 10000, not 10000.0."""
    return repr(int(number)) if number == int(number) else repr(number)


def _interactive_beside(chart: Path) -> str | None:
    """From `reports/` to the page that goes with a chart `visualizations/<folder>/<file>`; None where there is none."""
    page = chart.with_suffix(".html")
    return "/".join(("..", *page.parts[-3:])) if page.is_file() else None
