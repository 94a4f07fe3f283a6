"""The one comparison that cost charts show: the one that a report leads with, of our presets the cheapest."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.groups import Group, groups
from kontext_fast.analysis.names import workload_name
from kontext_fast.analysis.ranking import headline_rank
from kontext_fast.cost.analysis import NO_PRICE, Question, choose_price
from kontext_fast.cost.billing import Billing, Demand, Tariff, Work
from kontext_fast.cost.cards import card_of
from kontext_fast.cost.measured import Measured, measured, paired_half_s
from kontext_fast.cost.payback import savings_per_month
from kontext_fast.cost.prices import Price, PriceTable
from kontext_fast.errors import InvalidInput
from kontext_fast.records.names import is_peer
from kontext_fast.records.schema import BASELINE, CONTROL, ResultFile
from kontext_fast.stats.intervals import Estimate


@dataclass(frozen=True)
class HeadlineComparison:
    group: Group
    card: str
    price: Price
    table: PriceTable
    today: date
    baseline: Measured
    other: Measured
    baseline_work: Work
    other_work: Work

    @property
    def subtitle(self) -> str:
        """Checkpoint, workload and machine."""
        checkpoint = f"{self.group.checkpoint.name}, " if self.group.checkpoint else ""
        return f"{checkpoint}{workload_name(self.group.workload)}, on {self.group.machine}"

    @property
    def runs(self) -> str:
        """How many records the two times came from."""
        baseline, other = (len(work.run_ids) for work in (self.baseline_work, self.other_work))
        return f"{fmt.count(baseline, 'run')} of baseline, {other} of the preset"

    @property
    def stamp(self) -> str | None:
        """What must stand beside every number."""
        stamps = list(dict.fromkeys((*self.baseline.row.labels, *self.other.row.labels)))
        if self.price.is_stale(self.today):
            stamps.append(f"stale price of {self.price.day}")
        return "; ".join(stamps) or None

    def tariff(self, billing: Billing, price: Price | None = None) -> Tariff:
        return Tariff(billing=billing, price=price or self.price)

    def savings(self, demand: Demand, tariff: Tariff) -> Estimate:
        """Dollars a month."""
        half = paired_half_s(self.baseline, self.other)
        return savings_per_month(self.baseline_work, self.other_work, demand, tariff, paired_half_s=half)


def headline_comparison(result: ResultFile, table: PriceTable, today: date) -> HeadlineComparison | str:
    """The comparison, or in a few words why there is none."""
    reason = NO_PRICE
    for group in sorted(groups(result), key=headline_rank, reverse=True):
        card = card_of(group.machine)
        if card is None:
            continue
        rows = measured(group)
        try:
            price = choose_price(group.machine, rows, table, Question(demand=Demand(images_per_day=1), today=today))
        except InvalidInput as error:
            # One workload that is too large for its price must not cost the report its other charts.
            reason = str(error).removesuffix(".")
            continue
        if price is None:
            continue
        priced = [(row, row.work) for row in rows if row.work is not None]
        baseline = next(((row, work) for row, work in priced if row.row.preset == BASELINE), None)
        others = [(row, work) for row, work in priced if row.row.preset not in (BASELINE, CONTROL)]
        others = [(row, work) for row, work in others if not is_peer(row.row.preset)] or others
        if baseline is None or not others:
            reason = "no baseline and preset measured on the same workload"
            continue
        other = min(others, key=lambda one: one[1].seconds.value)
        return HeadlineComparison(group, card, price, table, today, baseline[0], other[0], baseline[1], other[1])
    return reason
