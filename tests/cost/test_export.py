"""Every name and value of the JSON and of the CSV, from an analysis whose costs are known."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, replace
from typing import Any

import pytest

from kontext_fast.cost.analysis import GroupCost, Question
from kontext_fast.cost.export import CSV_COLUMNS, as_csv, as_json, price_as_json
from kontext_fast.cost.prices import load_prices
from kontext_fast.records.schema import EMULATED
from kontext_fast.stats.intervals import Estimate
from tests.cost.gpu_records import TODAY, gpu_result, gpu_run, price
from tests.cost.test_analysis import QUESTION, analysed, presets
from tests.records.builder import result

ASKED: dict[str, Any] = {"price": None, "development_usd": 600.0, "upkeep_usd_per_month": 10.0, "rho_max": 0.6}


@pytest.fixture(scope="module")
def group() -> GroupCost:
    return analysed(gpu_result(), **ASKED)


def values(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)


def test_json_has_every_value_under_its_name(group: GroupCost) -> None:
    question: Question = replace(QUESTION, **ASKED)
    answer = as_json([group], load_prices(), question)
    (of_group,) = answer.pop("groups")
    assert answer == {
        "today": "2026-11-01",
        "billing": "by-use",
        "images_per_day": 3600,
        "peak_share": 1 / 24,
        "cold_starts_per_day": 0.0,
        "days_per_month": 365 / 12,
        "rho_max": 0.6,
        "licence": list(load_prices().licence_notes()),
    }
    of_presets = {preset["preset"]: preset for preset in of_group.pop("presets")}
    assert group.price is not None
    assert of_group == {
        "checkpoint": "random",
        "workload": "edit, 1024x1024, 28 steps",
        "machine": "NVIDIA H200",
        "card": "H200",
        "price": price_as_json(group.price, TODAY),
        "refusal": None,
    }
    classic = presets(group)["classic"]
    assert classic.cost is not None
    assert classic.payback is not None
    assert classic.payback.months_interval is not None
    never = [crossing for crossing in of_presets["classic"]["crossovers"] if crossing["images_per_day"] == "never"]
    assert len(never) == sum(crossing.images_per_day == float("inf") for crossing in classic.crossovers) > 0
    assert of_presets["classic"] == {
        "preset": "classic",
        "labels": [],
        "note": None,
        "seconds_per_image": values(classic.seconds_per_image),
        "cold_start_s": classic.cold_start_s,
        "usd_per_image": values(classic.cost.per_image),
        "usd_per_day": values(classic.cost.per_day),
        "usd_per_month": values(classic.cost.per_month),
        "gpus": classic.cost.gpus,
        "utilization": classic.cost.utilization,
        "saved_usd_per_month": values(classic.savings_per_month),
        "images_to_repay_start": classic.images_to_repay_start,
        "payback": {
            "months": classic.payback.months,
            "months_interval": list(classic.payback.months_interval),
            "first_year_return": classic.payback.first_year_return,
        },
        "crossovers": [
            {
                "cheaper": crossing.cheaper,
                "instead_of": crossing.instead_of,
                "images_per_day": "never" if crossing.images_per_day == float("inf") else crossing.images_per_day,
            }
            for crossing in classic.crossovers
        ],
        "run_ids": ["classic-0", "classic-1", "classic-2"],
        "basis": str(classic.cost.basis),
    }
    assert of_presets["baseline"]["saved_usd_per_month"] is None
    assert of_presets["baseline"]["payback"] is None


def test_preset_without_a_cost_has_its_note_alone() -> None:
    records = result([gpu_run("baseline", 0), gpu_run("classic", 0, labels=(EMULATED,))])
    emulated = analysed(records)
    (of_group,) = as_json([emulated], load_prices(), QUESTION)["groups"]
    classic = next(preset for preset in of_group["presets"] if preset["preset"] == "classic")
    assert classic == {
        "preset": "classic",
        "labels": [EMULATED],
        "note": "emulated kernel: not a speed",
        "crossovers": [],
        "run_ids": [],
        **dict.fromkeys(
            (
                *("seconds_per_image", "cold_start_s", "usd_per_image", "usd_per_day", "usd_per_month", "gpus"),
                *("utilization", "saved_usd_per_month", "images_to_repay_start", "payback", "basis"),
            )
        ),
    }
    line = {line["preset"]: line for line in csv.DictReader(io.StringIO(as_csv([emulated])))}["classic"]
    assert line.pop("note") == "emulated kernel: not a speed"
    assert {name for name, value in line.items() if value} == {
        *("checkpoint", "workload", "machine", "preset", "labels", "images_per_day", "days_per_month"),
    }


def test_csv_has_every_value_under_its_column(group: GroupCost) -> None:
    text = as_csv([group])
    assert "\r" not in text
    assert text.splitlines()[0] == ",".join(CSV_COLUMNS)
    lines = {line["preset"]: line for line in csv.DictReader(io.StringIO(text))}
    classic, paid = presets(group)["classic"], presets(group)["classic"].cost
    assert paid is not None
    assert classic.payback is not None
    assert group.price is not None

    def columns(name: str, estimate: Estimate | None) -> dict[str, str]:
        assert estimate is not None
        assert estimate.interval is not None
        low, high = estimate.interval
        return {name: str(estimate.value), f"{name}_low": str(low), f"{name}_high": str(high)}

    assert lines["classic"] == {
        "checkpoint": "random",
        "workload": "edit, 1024x1024, 28 steps",
        "machine": "NVIDIA H200",
        "preset": "classic",
        "labels": "",
        "images_per_day": "3600",
        "billing": "by-use",
        "price": group.price.id,
        "price_day": group.price.day.isoformat(),
        "price_stale": "False",
        "usd_per_gpu_hour": str(group.price.usd_per_gpu_hour),
        "days_per_month": str(365 / 12),
        **columns("seconds_per_image", classic.seconds_per_image),
        **columns("usd_per_image", paid.per_image),
        **columns("usd_per_month", paid.per_month),
        **columns("saved_usd_per_month", classic.savings_per_month),
        "gpus": str(paid.gpus),
        "utilization": str(paid.utilization),
        "images_to_repay_start": str(classic.images_to_repay_start),
        "payback_months": str(classic.payback.months),
        "note": "",
        "run_ids": "classic-0 classic-1 classic-2",
    }
    assert lines["baseline"]["payback_months"] == lines["baseline"]["images_to_repay_start"] == ""


def test_price_without_what_it_lacks_has_its_rate() -> None:
    stored = price_as_json(price(8.0, count=4), TODAY)
    assert (stored["usd_per_gpu_hour"], stored["stale"]) == (2.0, False)
    assert not {"usd_per_image", "usd_per_month", "terms"} & stored.keys()
    assert price_as_json(price(), TODAY.replace(year=2028))["stale"] is True
