"""Documents for a blog, a paper and a business case, rendered from the same report as the page."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.rows import Row
from kontext_fast.cost.analysis import PresetCost, Question, analyse_group
from kontext_fast.cost.billing import Demand
from kontext_fast.cost.prices import Kind, Price
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import BASELINE, CONTROL
from kontext_fast.report.charting import Chart
from kontext_fast.report.costs import crossing_words, preset_cost
from kontext_fast.report.model import Report
from kontext_fast.report.sections import Section
from kontext_fast.stats.intervals import Estimate

Audience = Literal["page", "blog", "paper", "business"]

DOCUMENTS: Final[dict[Audience, str]] = {
    "page": "index.html",
    "blog": "blog.md",
    "paper": "paper.tex",
    "business": "business.md",
}


MONTHS = (1, 2, 3, 6, 9, 12)
VOLUMES = (1_000, 10_000, 100_000)


@dataclass(frozen=True)
class Moment:
    """A line of the timeline: dollars gained since the start, after development and upkeep."""

    months: int
    gained: Estimate


@dataclass(frozen=True)
class Scenario:
    name: str
    saved: Estimate
    """Dollars a month."""


@dataclass(frozen=True)
class Bought:
    """The same images from somebody else's service."""

    price: Price
    usd_per_month: float


@dataclass(frozen=True)
class Case:
    section: Section
    best: Row
    baseline: PresetCost
    preset: PresetCost
    saved: Estimate
    """Dollars a month, before upkeep."""
    timeline: tuple[Moment, ...]
    volumes: tuple[Scenario, ...]
    prices: tuple[Scenario, ...]
    """At every price of the card that fits the billing model."""
    bought: tuple[Bought, ...]

    @property
    def within_a_year(self) -> float:
        """What the development may cost to be paid back within twelve months."""
        return self.timeline[-1].gained.value


def business_case(story: Report) -> Case | str:
    """The case, or in one sentence why there is none."""
    section = story.lead
    if section is None or not section.group.runs:
        return "Nothing was measured, so there is nothing to decide."
    if section.best is None:
        return "No preset may be called faster than baseline by these records, so there is nothing to buy."
    preset, baseline = section.cost_of(section.best.preset), section.cost_of(BASELINE)
    if section.cost.refusal:
        return (
            f"There is {section.cost.refusal}, so the gain has no value in dollars: give what the machine costs as "
            "--price USD per hour."
        )
    if preset is None or baseline is None or preset.savings_per_month is None:
        return f"{section.best.preset} could not be priced."
    question = story.costs.question
    return Case(
        section=section,
        best=section.best,
        baseline=baseline,
        preset=preset,
        saved=preset.savings_per_month,
        timeline=tuple(_moment(months, preset.savings_per_month, question) for months in MONTHS),
        volumes=tuple(_at_volume(volume, section, story) for volume in VOLUMES),
        prices=_at_prices(section, story),
        bought=tuple(_bought(price, question.demand) for price in story.costs.table.apis()),
    )


def _bought(price: Price, demand: Demand) -> Bought:
    assert price.usd_per_image is not None
    return Bought(price, price.usd_per_image * demand.images_per_day * demand.days_per_month)


def _moment(months: int, saved: Estimate, question: Question) -> Moment:
    spent = question.development_usd or 0.0

    def gained(per_month: float) -> float:
        return months * (per_month - question.upkeep_usd_per_month) - spent

    interval = saved.interval and (gained(saved.interval[0]), gained(saved.interval[1]))
    return Moment(months, Estimate(gained(saved.value), interval, saved.n))


def _at_volume(volume: int, section: Section, story: Report) -> Scenario:
    demand: Demand = replace(story.costs.question.demand, images_per_day=float(volume))
    saved = _saved(section, story, replace(story.costs.question, demand=demand))
    return Scenario(f"{volume:,} images a day", saved)


def _at_prices(section: Section, story: Report) -> tuple[Scenario, ...]:
    question = story.costs.question
    kind: Kind = "reserved" if question.billing == "reserved" else "on-demand"
    found = []
    for price in story.costs.table.of_card(section.cost.card, kind):
        try:
            saved = _saved(section, story, replace(question, price=price.id))
        except InvalidInput:
            # The measured peak does not fit into that row's memory, so it is no choice.
            continue
        found.append(Scenario(_named(price, question), saved))
    return tuple(found)


def _saved(section: Section, story: Report, question: Question) -> Estimate:
    assert section.best is not None
    cost = preset_cost(analyse_group(section.group, story.costs.table, question), section.best.preset)
    assert cost is not None
    assert cost.savings_per_month is not None
    return cost.savings_per_month


def _named(price: Price, question: Question) -> str:
    return f"{price.dated(question.today)}, {fmt.usd_rate(price.usd_per_gpu_hour)} per GPU-hour"


def with_range(estimate: Estimate) -> str:
    """`$12,345 ($11,800 to $12,900)`."""
    return f"{fmt.usd(estimate.value)} ({fmt.usd_range(estimate) or 'no interval'})"


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


def document(story: Report, audience: Audience) -> str:
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
        fmt=fmt,
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


def hero(story: Report) -> Chart | None:
    """The summary of what is gained where there is one, else the first picture; None where none was drawn."""
    drawn = [(chart, chart.path.name) for chart in story.charts if chart.path is not None]
    summaries = [chart for chart, name in drawn if name.endswith("_summary.png")]
    return next(iter(summaries or [chart for chart, _ in drawn]), None)


def beside_document(chart: Path) -> str:
    """From `reports/` to a chart `visualizations/<folder>/<file>`."""
    return "/".join(("..", *chart.parts[-3:]))
