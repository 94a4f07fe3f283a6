"""The analysis as JSON values and as a CSV. Numbers are not rounded; what never happens is the word `never`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict
from datetime import date
from typing import Any

from kontext_fast.cost.analysis import GroupCost, PresetCost, Question
from kontext_fast.cost.prices import Price, PriceTable
from kontext_fast.stats.intervals import Estimate

NEVER = "never"

CSV_COLUMNS = (
    "checkpoint",
    "workload",
    "machine",
    "preset",
    "labels",
    "images_per_day",
    "billing",
    "price",
    "price_day",
    "price_stale",
    "usd_per_gpu_hour",
    "days_per_month",
    "seconds_per_image",
    "seconds_per_image_low",
    "seconds_per_image_high",
    "usd_per_image",
    "usd_per_image_low",
    "usd_per_image_high",
    "usd_per_month",
    "usd_per_month_low",
    "usd_per_month_high",
    "saved_usd_per_month",
    "saved_usd_per_month_low",
    "saved_usd_per_month_high",
    "gpus",
    "utilization",
    "images_to_repay_start",
    "payback_months",
    "note",
    "run_ids",
)


def as_json(costs: Iterable[GroupCost], table: PriceTable, question: Question) -> dict[str, Any]:
    """The whole answer as JSON values."""
    demand = question.demand
    return {
        "today": question.today.isoformat(),
        "billing": question.billing,
        "images_per_day": demand.images_per_day,
        "peak_share": demand.peak_share,
        "cold_starts_per_day": demand.cold_starts_per_day,
        "days_per_month": demand.days_per_month,
        "rho_max": question.rho_max,
        "licence": list(table.licence_notes()),
        "groups": [_group(group, question.today) for group in costs],
    }


def as_csv(costs: Iterable[GroupCost]) -> str:
    """One line per preset and group; what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for group in costs:
        for preset in group.presets:
            writer.writerow(_line(group, preset))
    return text.getvalue()


def _group(group: GroupCost, today: date) -> dict[str, Any]:
    return {
        "checkpoint": group.checkpoint,
        "workload": group.workload,
        "machine": group.machine,
        "card": group.card,
        "price": None if group.price is None else price_as_json(group.price, today),
        "refusal": group.refusal,
        "presets": [_preset(preset) for preset in group.presets],
    }


def price_as_json(price: Price, today: date) -> dict[str, Any]:
    stored = price.model_dump(mode="json", exclude_none=True)
    return stored | {"usd_per_gpu_hour": price.usd_per_gpu_hour, "stale": price.is_stale(today)}


def _preset(preset: PresetCost) -> dict[str, Any]:
    priced = preset.cost
    paid_back = preset.payback
    return {
        "preset": preset.preset,
        "labels": list(preset.labels),
        "note": preset.note,
        "seconds_per_image": preset.seconds_per_image and asdict(preset.seconds_per_image),
        "cold_start_s": preset.cold_start_s,
        "usd_per_image": priced and asdict(priced.per_image),
        "usd_per_day": priced and asdict(priced.per_day),
        "usd_per_month": priced and asdict(priced.per_month),
        "gpus": priced and priced.gpus,
        "utilization": priced and priced.utilization,
        "saved_usd_per_month": preset.savings_per_month and asdict(preset.savings_per_month),
        "images_to_repay_start": _or_never(preset.images_to_repay_start),
        "payback": paid_back
        and {
            "months": _or_never(paid_back.months),
            "months_interval": paid_back.months_interval and [_or_never(end) for end in paid_back.months_interval],
            "first_year_return": paid_back.first_year_return,
        },
        "crossovers": [
            {
                "cheaper": crossing.cheaper,
                "instead_of": crossing.instead_of,
                "images_per_day": _or_never(crossing.images_per_day),
            }
            for crossing in preset.crossovers
        ],
        "run_ids": list(priced.basis.run_ids) if priced else [],
        "basis": str(priced.basis) if priced else None,
    }


def _or_never(value: float | None) -> float | str | None:
    return NEVER if value is not None and math.isinf(value) else value


def _line(group: GroupCost, preset: PresetCost) -> dict[str, Any]:
    line: dict[str, Any] = {
        "checkpoint": group.checkpoint,
        "workload": group.workload,
        "machine": group.machine,
        "preset": preset.preset,
        "labels": "; ".join(preset.labels),
        "images_per_day": group.demand.images_per_day,
        "days_per_month": group.demand.days_per_month,
        "images_to_repay_start": _or_never(preset.images_to_repay_start),
        "payback_months": _or_never(preset.payback.months) if preset.payback else None,
        "note": preset.note,
        **_columns("seconds_per_image", preset.seconds_per_image),
        **_columns("saved_usd_per_month", preset.savings_per_month),
    }
    if preset.cost is not None:
        basis = preset.cost.basis
        line |= {
            "billing": basis.billing,
            "price": basis.price.id,
            "price_day": basis.price.day.isoformat(),
            "price_stale": basis.stale,
            "usd_per_gpu_hour": basis.price.usd_per_gpu_hour,
            "gpus": preset.cost.gpus,
            "utilization": preset.cost.utilization,
            "run_ids": " ".join(basis.run_ids),
            **_columns("usd_per_image", preset.cost.per_image),
            **_columns("usd_per_month", preset.cost.per_month),
        }
    return line


def _columns(name: str, estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {}
    low, high = estimate.interval or (None, None)
    return {name: estimate.value, f"{name}_low": low, f"{name}_high": high}
