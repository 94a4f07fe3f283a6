"""The one comparison that cost charts show: the one that a report leads with, of our presets the cheapest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.names import workload_name
from kontext_fast.analysis.ranking import headline_rank
from kontext_fast.analysis.tiers import may_claim
from kontext_fast.cost import Billing
from kontext_fast.cost.analysis import NO_PRICE, GroupCost, Question, choose_price
from kontext_fast.cost.billing import Demand, Tariff
from kontext_fast.cost.payback import savings_per_month
from kontext_fast.cost.prices import Price, PriceTable
from kontext_fast.cost.work import PresetWork, Work, paired_half_s
from kontext_fast.errors import InvalidInput
from kontext_fast.records.names import is_peer
from kontext_fast.records.schema import BASELINE, CONTROL
from kontext_fast.stats.intervals import Estimate


@dataclass(frozen=True)
class HeadlineComparison:
    group: AnalyzedGroup
    card: str
    price: Price
    table: PriceTable
    today: date
    baseline: PresetWork
    other: PresetWork

    @property
    def works(self) -> tuple[Work, Work]:
        """Of baseline and of the preset."""
        assert self.baseline.work is not None
        assert self.other.work is not None
        return self.baseline.work, self.other.work

    @property
    def subtitle(self) -> str:
        """Checkpoint, workload and machine."""
        checkpoint = f"{self.group.checkpoint.name}, " if self.group.checkpoint else ""
        return f"{checkpoint}{workload_name(self.group.workload)}, on {self.group.machine}"

    @property
    def runs(self) -> str:
        """How many records the two times came from."""
        baseline, other = (len(work.run_ids) for work in self.works)
        return f"{fmt.count(baseline, 'run')} of baseline, {other} of the preset"

    @property
    def note(self) -> str | None:
        """What must be shown with every number: the labels of both presets."""
        return "; ".join(dict.fromkeys((*self.baseline.row.labels, *self.other.row.labels))) or None

    @property
    def stamp(self) -> str | None:
        """A warning: that the price is stale."""
        return f"stale price of {self.price.day}" if self.price.is_stale(self.today) else None

    def tariff(self, billing: Billing, price: Price | None = None) -> Tariff:
        return Tariff(billing=billing, price=price or self.price)

    def savings(self, demand: Demand, tariff: Tariff) -> Estimate:
        """Dollars a month."""
        return savings_per_month(*self.works, demand, tariff, paired_half_s=paired_half_s(self.baseline, self.other))


def headline_comparison(costs: Iterable[GroupCost], table: PriceTable, today: date) -> HeadlineComparison | str:
    """The comparison at the card's typical price, or in a few words why there is none."""
    question = Question(demand=Demand(images_per_day=1), today=today)
    reason = NO_PRICE
    for cost in sorted(costs, key=lambda cost: headline_rank(cost.group), reverse=True):
        if cost.card is None:
            continue
        try:
            price = choose_price(cost.machine, cost.works, table, question)
        except InvalidInput as error:
            # One workload that is too large for its price must not cost the report its other charts.
            reason = str(error).removesuffix(".")
            continue
        if price is None:
            continue
        baseline, other = cost.work_of(BASELINE), _cheapest(cost.works)
        if baseline is None or other is None:
            reason = "no baseline and preset measured on the same workload"
            continue
        return HeadlineComparison(cost.group, cost.card, price, table, today, baseline, other)
    return reason


def _cheapest(works: Iterable[PresetWork]) -> PresetWork | None:
    """The preset with the shortest calls; one whose time supports no claim only where there is no other, and a peer
    only where no preset of ours could be priced."""
    times = [
        (is_peer(priced.preset), not may_claim(priced.row), priced.work.seconds.value, priced)
        for priced in works
        if priced.work and priced.preset not in (BASELINE, CONTROL)
    ]
    return min(times, key=lambda time: time[:3])[3] if times else None
