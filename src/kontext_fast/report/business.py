"""The case for a faster preset: what it saves over time, at other volumes and prices, and against buying images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.rows import Row
from kontext_fast.cost.analysis import PresetCost, Question, choose_price, savings
from kontext_fast.cost.billing import Tariff
from kontext_fast.cost.prices import Kind, Price
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import BASELINE
from kontext_fast.report.model import GroupReport, Report
from kontext_fast.stats.intervals import Estimate

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
class Purchase:
    """The same images from a service."""

    price: Price
    usd_per_month: float


@dataclass(frozen=True)
class BusinessCase:
    group: GroupReport
    best: Row
    baseline: PresetCost
    preset: PresetCost
    saved: Estimate
    """Dollars a month, before upkeep."""
    timeline: tuple[Moment, ...]
    volumes: tuple[Scenario, ...]
    prices: tuple[Scenario, ...]
    """At every price of the card that fits the billing model."""
    purchases: tuple[Purchase, ...]

    @property
    def within_a_year(self) -> float:
        """What the development may cost to be paid back within twelve months."""
        return self.timeline[-1].gained.value


def business_case(report: Report) -> BusinessCase | str:
    """The case, or in one sentence why there is none."""
    lead = report.lead
    if lead is None or not lead.group.runs:
        return "Nothing was measured, so there is nothing to decide."
    if lead.best is None:
        return "No preset may be called faster than baseline by these records, so there is nothing to buy."
    preset, baseline = lead.cost.of(lead.best.preset), lead.cost.of(BASELINE)
    if lead.cost.refusal:
        return (
            f"There is {lead.cost.refusal}, so the gain has no value in dollars: give what the machine costs as "
            "--price USD per hour."
        )
    if preset is None or baseline is None or preset.savings_per_month is None:
        return f"{lead.best.preset} could not be priced."
    demand = report.question.demand
    return BusinessCase(
        group=lead,
        best=lead.best,
        baseline=baseline,
        preset=preset,
        saved=preset.savings_per_month,
        timeline=tuple(_moment(months, preset.savings_per_month, report.question) for months in MONTHS),
        volumes=tuple(_at_volumes(lead, report.question)),
        prices=tuple(_at_prices(lead, report)),
        purchases=tuple(
            Purchase(price, price.usd_per_image * demand.images_per_day * demand.days_per_month)
            for price in report.prices.apis()
            if price.usd_per_image is not None
        ),
    )


def _moment(months: int, saved: Estimate, question: Question) -> Moment:
    spent = question.development_usd or 0.0

    def gained(per_month: float) -> float:
        return months * (per_month - question.upkeep_usd_per_month) - spent

    interval = saved.interval and (gained(saved.interval[0]), gained(saved.interval[1]))
    return Moment(months, Estimate(gained(saved.value), interval, saved.n))


def _at_volumes(lead: GroupReport, question: Question) -> Iterator[Scenario]:
    assert lead.cost.price is not None
    for volume in VOLUMES:
        at_volume = replace(question, demand=replace(question.demand, images_per_day=float(volume)))
        yield Scenario(f"{volume:,} images a day", _saved(lead, lead.cost.price, at_volume))


def _at_prices(lead: GroupReport, report: Report) -> Iterator[Scenario]:
    question = report.question
    kind: Kind = "reserved" if question.billing == "reserved" else "on-demand"
    for price in report.prices.of_card(lead.cost.card, kind):
        try:
            choose_price(lead.cost.machine, lead.cost.works, report.prices, replace(question, price=price.id))
        except InvalidInput:
            # The measured peak does not fit into that row's memory, so it is no choice.
            continue
        name = f"{price.dated(question.today)}, {fmt.usd_rate(price.usd_per_gpu_hour)} per GPU-hour"
        yield Scenario(name, _saved(lead, price, question))


def _saved(lead: GroupReport, price: Price, question: Question) -> Estimate:
    assert lead.best is not None
    baseline, best = lead.cost.work_of(BASELINE), lead.cost.work_of(lead.best.preset)
    assert baseline is not None
    assert best is not None
    tariff = Tariff(billing=question.billing, price=price, rho_max=question.rho_max)
    saved = savings(baseline, best, question.demand, tariff)
    assert saved is not None
    return saved
