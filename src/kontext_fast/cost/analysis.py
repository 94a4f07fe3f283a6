"""The cost of every preset in a file of records: what it costs, saves and repays, and where other ways are cheaper."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date

from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.names import workload_name
from kontext_fast.cost import Billing
from kontext_fast.cost.billing import LARGEST, RHO_MAX, Basis, Cost, Demand, Tariff, cost
from kontext_fast.cost.crossover import Crossover, fleet_instead_of_use, hosting_instead_of_api
from kontext_fast.cost.payback import Payback, images_to_repay_start, payback, savings_per_month
from kontext_fast.cost.prices import Kind, Price, PriceTable, card_of, user_price
from kontext_fast.cost.work import PresetWork, Work, is_load_known, paired_half_s, preset_works
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import BASELINE, CONTROL
from kontext_fast.stats.intervals import Estimate

NO_PRICE = "no price for this machine"
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of the records."""

    demand: Demand
    today: date
    billing: Billing = "by-use"
    price: str | None = None
    """Id of a row or dollars per GPU-hour; None takes the card's typical row."""
    rho_max: float = RHO_MAX
    load_s: float | None = None
    """What loading the weights takes at a cold start; None takes it from the records, and nothing where they have
    random weights, which are read from nowhere."""
    development_usd: float | None = None
    upkeep_usd_per_month: float = 0.0

    def __post_init__(self) -> None:
        """Raises InvalidInput for amounts that nobody pays, which would give sums that are no numbers."""
        amounts = {
            "development": self.development_usd or 0.0,
            "upkeep": self.upkeep_usd_per_month,
            "loading": self.load_s or 0.0,
        }
        for name, amount in amounts.items():
            if not 0 <= amount <= LARGEST:
                raise InvalidInput(f"{amount:g} for the {name} cannot be priced: give 0 to {LARGEST:g}.")


@dataclass(frozen=True)
class PresetCost:
    """One preset; what is None was not measured, has no price, or is of the baseline itself."""

    preset: str
    labels: tuple[str, ...]
    seconds_per_image: Estimate | None
    cold_start_s: float | None
    """From nothing to the first image; where it was not measured, a cost by use leaves it out."""
    cost: Cost | None
    note: str | None
    """Why there is no cost."""
    savings_per_month: Estimate | None
    """Against baseline; negative where the preset costs more."""
    images_to_repay_start: float | None
    payback: Payback | None
    crossovers: tuple[Crossover, ...]


@dataclass(frozen=True)
class GroupCost:
    """The runs that may be compared, priced."""

    group: AnalyzedGroup
    works: tuple[PresetWork, ...]
    """Of every preset of the group, the A/A control included."""
    price: Price | None
    refusal: str | None
    """Why nothing is priced."""
    demand: Demand
    presets: tuple[PresetCost, ...]
    """Without the A/A control: it is baseline under another name."""

    @property
    def workload(self) -> str:
        return workload_name(self.group.workload)

    @property
    def checkpoint(self) -> str | None:
        return self.group.checkpoint.name if self.group.checkpoint else None

    @property
    def machine(self) -> str | None:
        return self.group.machine

    @property
    def card(self) -> str | None:
        return card_of(self.group.machine)

    @property
    def basis(self) -> Basis | None:
        return next((preset.cost.basis for preset in self.presets if preset.cost), None)

    @property
    def without_load(self) -> bool:
        """Whether cold starts are counted without loading, since the records cannot tell how long it takes."""
        return not is_load_known(self.group) and all(work.work is None or work.work.load_s == 0 for work in self.works)

    def of(self, preset: str) -> PresetCost | None:
        return next((cost for cost in self.presets if cost.preset == preset), None)

    def work_of(self, preset: str) -> PresetWork | None:
        """None where no time of the preset could be priced."""
        return next((work for work in self.works if work.preset == preset and work.work), None)


def group_cost(group: AnalyzedGroup, table: PriceTable, question: Question) -> GroupCost:
    """Raises InvalidInput for a price that is not of the card that was measured, or of one with too little memory."""
    works = preset_works(group, question.load_s)
    priced = [work for work in works if work.preset != CONTROL]
    price = choose_price(group.machine, priced, table, question)
    tariff = None if price is None else Tariff(billing=question.billing, price=price, rho_max=question.rho_max)
    baseline = next((work for work in priced if work.preset == BASELINE and work.work), None)
    return GroupCost(
        group=group,
        works=works,
        price=price,
        refusal=None if price else _refusal(group.machine, table, question),
        demand=question.demand,
        presets=tuple(_preset_cost(work, baseline, tariff, table, question) for work in priced),
    )


def choose_price(
    machine: str | None, works: Iterable[PresetWork], table: PriceTable, question: Question
) -> Price | None:
    """The asked price, else the card's typical row for the billing model; None where there is none.

    Raises InvalidInput where the asked price is of another card, or of one with less memory than the measured peak.
    """
    kind: Kind = "reserved" if question.billing == "reserved" else "on-demand"
    card = card_of(machine)
    if question.price is None:
        price = table.typical(card, kind)
    else:
        typed = user_price(question.price, billing_kind=kind, today=question.today)
        price = typed or _of_card(table.named(question.price), machine, card)
    if price is not None:
        _check_memory(price, works)
    return price


def _of_card(price: Price, machine: str | None, card: str | None) -> Price:
    if price.card is None:
        raise InvalidInput(f"Price {price.id} is of kind {price.kind}, not of a GPU: choose a GPU's price.")
    if price.card != card:
        raise InvalidInput(
            f"The times were measured on {machine or 'an unknown machine'} and price {price.id} is for {price.card}: "
            "choose a price of the card that was measured, or measure on the other one."
        )
    return price


def _check_memory(price: Price, works: Iterable[PresetWork]) -> None:
    if price.memory_gib is None:
        return
    for work in works:
        if work.peak_bytes is not None and work.peak_bytes > price.memory_gib * GIB:
            raise InvalidInput(
                f"{work.preset} held {work.peak_bytes / GIB:.1f} GiB and price {price.id} is for "
                f"{price.memory_gib:g} GiB: choose a price of a larger card."
            )


def _refusal(machine: str | None, table: PriceTable, question: Question) -> str:
    card = card_of(machine)
    if question.billing == "reserved" and table.typical(card, "on-demand"):
        return f"no reserved price for {card}; give one as --price USD per GPU-hour"
    return NO_PRICE


def _preset_cost(
    priced: PresetWork, baseline: PresetWork | None, tariff: Tariff | None, table: PriceTable, question: Question
) -> PresetCost:
    work = priced.work
    unpriced = PresetCost(
        preset=priced.preset,
        labels=priced.labels,
        seconds_per_image=_per_image(work),
        cold_start_s=work.cold_start_s if work else None,
        cost=None,
        note=priced.note or NO_PRICE,
        savings_per_month=None,
        images_to_repay_start=None,
        payback=None,
        crossovers=(),
    )
    if work is None or tariff is None:
        return unpriced
    against = baseline if baseline is not None and priced is not baseline else None
    saved = None if against is None else savings(against, priced, question.demand, tariff)
    return replace(
        unpriced,
        cost=cost(work, question.demand, tariff, today=question.today),
        note=None,
        savings_per_month=saved,
        images_to_repay_start=images_to_repay_start(against.work, work) if against and against.work else None,
        payback=_payback(saved, question),
        crossovers=_crossovers(work, tariff, table, question),
    )


def savings(baseline: PresetWork, other: PresetWork, demand: Demand, tariff: Tariff) -> Estimate | None:
    """Dollars a month that `other` saves; None where either has no time that could be priced."""
    if baseline.work is None or other.work is None:
        return None
    half = paired_half_s(baseline, other)
    return savings_per_month(baseline.work, other.work, demand, tariff, paired_half_s=half)


def _payback(saved: Estimate | None, question: Question) -> Payback | None:
    if saved is None or question.development_usd is None:
        return None
    return payback(saved, development_usd=question.development_usd, upkeep_usd_per_month=question.upkeep_usd_per_month)


def _crossovers(work: Work, tariff: Tariff, table: PriceTable, question: Question) -> tuple[Crossover, ...]:
    """By use against both kinds of fleet where the prices are known, and against every API price."""
    demand, price = question.demand, tariff.price
    crossovers: list[Crossover] = []
    if price.kind != "reserved":
        by_use = Tariff(billing="by-use", price=price)
        fleets = [Tariff(billing="always-on", price=price, rho_max=tariff.rho_max)]
        if reserved := table.typical(price.card, "reserved"):
            fleets.append(Tariff(billing="reserved", price=reserved, rho_max=tariff.rho_max))
        crossovers += [fleet_instead_of_use(work, demand, by_use, fleet) for fleet in fleets]
    licence = sum(row.usd_per_month or 0.0 for row in table.of_kind("licence"))
    crossovers += [
        hosting_instead_of_api(work, demand, tariff, api, licence_usd_per_month=licence) for api in table.apis()
    ]
    return tuple(crossovers)


def _per_image(work: Work | None) -> Estimate | None:
    if work is None:
        return None
    per_call, images = work.seconds, work.images_per_call
    interval = per_call.interval and (max(0.0, per_call.interval[0]) / images, per_call.interval[1] / images)
    return Estimate(per_call.value / images, interval, per_call.n)
