"""What the page and the documents say of money: the analysis of `kontext cost`, and the data of its live form."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.groups import Group
from kontext_fast.analysis.names import group_name
from kontext_fast.cost.analysis import GroupCost, PresetCost, Question, analyse_group
from kontext_fast.cost.billing import Demand
from kontext_fast.cost.cards import card_of
from kontext_fast.cost.crossover import Crossover
from kontext_fast.cost.export import as_json
from kontext_fast.cost.licence import licence_notes
from kontext_fast.cost.measured import measured, paired_half_s
from kontext_fast.cost.prices import Kind, Price, PriceTable
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import BASELINE

USUAL_IMAGES_PER_DAY = 10_000
USUAL_COLD_STARTS_PER_DAY = 1

RENTED: tuple[Kind, ...] = ("on-demand", "spot", "reserved")


@dataclass(frozen=True)
class Costs:
    question: Question
    table: PriceTable
    groups: tuple[GroupCost, ...]
    """In the order of the groups that were priced."""
    licence: tuple[str, ...]
    live: dict[str, Any]
    """JSON values: the answer of `kontext cost --json`, with what its formulas need beyond it."""


def costs(found: Iterable[Group], table: PriceTable, question: Question) -> Costs:
    """Price every group. Raises InvalidInput for an asked price that is not of the card that was measured."""
    groups = tuple(found)
    priced = tuple(_priced(group, table, question) for group in groups)
    live = as_json(priced, table, question)
    for values, group in zip(live["groups"], groups, strict=True):
        _complete(values, group, table, question)
    return Costs(question, table, priced, licence_notes(table), live)


def preset_cost(group: GroupCost, preset: str) -> PresetCost | None:
    return next((cost for cost in group.presets if cost.preset == preset), None)


def _priced(group: Group, table: PriceTable, question: Question) -> GroupCost:
    try:
        return analyse_group(group, table, question)
    except InvalidInput as error:
        if question.price is not None:
            raise
        # One workload that is too large for the typical price must not cost the report its other numbers.
        refusal = str(error).removesuffix(".")
        checkpoint = group.checkpoint.name if group.checkpoint else None
        card = card_of(group.machine)
        return GroupCost(group_name(group), checkpoint, group.machine, card, None, refusal, question.demand, ())


def _complete(values: dict[str, Any], group: Group, table: PriceTable, question: Question) -> None:
    """Add the prices that a reader may choose, the peak that they must hold, and the spread of the time saved."""
    rows = {row.row.preset: row for row in measured(group)}
    baseline = rows.get(BASELINE)
    values["title"] = group_name(group)
    values["peak_bytes"] = max((row.peak_bytes for row in rows.values() if row.peak_bytes is not None), default=None)
    values["prices"] = [_price(price, question) for price in _choices(values["card"], table)]
    values["typical"] = {
        kind: price.id for kind in RENTED if (price := table.typical(values["card"], kind)) is not None
    }
    for preset in values["presets"]:
        row = rows[preset["preset"]]
        half = None
        if baseline is not None and baseline.work and row.work and row is not baseline:
            half = paired_half_s(baseline, row)
        preset["saved_half_s_per_image"] = (
            None if half is None or not baseline or not baseline.work else (half / baseline.work.images_per_call)
        )
        preset["run_ids"] = [run.record.run_id for run in group.runs_of(row.row.preset)]


def _choices(card: str | None, table: PriceTable) -> list[Price]:
    """Every rented row of the card, cheapest first within its kind."""
    return [price for kind in RENTED for price in table.of_card(card, kind)]


def _price(price: Price, question: Question) -> dict[str, Any]:
    stored = price.model_dump(mode="json", exclude_none=True)
    return stored | {"usd_per_gpu_hour": price.usd_per_gpu_hour, "stale": price.is_stale(question.today)}


def crossing_words(crossing: Crossover) -> str:
    """`always-on at A costs no more than by-use at A from 12,300 images a day on`."""
    volume = fmt.volume(crossing.images_per_day)
    when = "at no volume" if math.isinf(crossing.images_per_day) else f"from {volume} on"
    return f"{crossing.cheaper} costs no more than {crossing.instead_of} {when}"


def usual_question(today: date | None = None) -> Question:
    """What `kontext cost` asks where nothing is said."""
    demand = Demand(images_per_day=USUAL_IMAGES_PER_DAY, cold_starts_per_day=USUAL_COLD_STARTS_PER_DAY)
    return Question(demand=demand, today=today or date.today())
