"""The data of the form with which a reader of the page prices other volumes: what its script computes from."""

from __future__ import annotations

from typing import Any

from kontext_fast.analysis import format as fmt
from kontext_fast.cost.export import as_json, price_as_json
from kontext_fast.cost.prices import Kind
from kontext_fast.cost.work import paired_half_s
from kontext_fast.records.schema import BASELINE
from kontext_fast.report.model import GroupReport, Report

RENTED: tuple[Kind, ...] = ("on-demand", "spot", "reserved")


def form_data(report: Report) -> dict[str, Any]:
    """JSON values: the answer of `kontext cost --json`, with the prices that a reader may choose, the peak that they
    must hold, the spread of the time saved and the records behind it; presets in the order of the page.
    """
    groups = [group for group in report.groups if group.group.runs]
    answer = as_json([group.cost for group in groups], report.prices, report.question)
    for values, group in zip(answer["groups"], groups, strict=True):
        priced = {preset["preset"]: preset for preset in values["presets"]}
        values |= {
            "title": group.title,
            "peak_bytes": max(
                (work.peak_bytes for work in group.cost.works if work.peak_bytes is not None), default=None
            ),
            "prices": [
                price_as_json(price, report.question.today)
                for kind in RENTED
                for price in report.prices.of_card(group.cost.card, kind)
            ],
            "typical": {
                kind: price.id for kind in RENTED if (price := report.prices.typical(group.cost.card, kind)) is not None
            },
            "presets": [
                priced[row.preset] | _preset(row.preset, group, report) for row in group.rows if row.preset in priced
            ],
        }
    return answer


def _preset(preset: str, group: GroupReport, report: Report) -> dict[str, Any]:
    cost, run_ids = group.cost.of(preset), group.group.run_ids(preset)
    time = cost.seconds_per_image if cost else None
    return {
        "saved_half_s_per_image": _saved_half_s(preset, group),
        "run_ids": run_ids,
        "time": fmt.seconds_estimate(time) if time else fmt.NOT_MEASURED,
        "time_range": (fmt.seconds_range(time) if time else None) or fmt.NO_INTERVAL,
        "records": [report.numbers[run_id] for run_id in run_ids],
    }


def _saved_half_s(preset: str, group: GroupReport) -> float | None:
    """Half width of the interval of the seconds saved per image, paired by round."""
    baseline, other = group.cost.work_of(BASELINE), group.cost.work_of(preset)
    if preset == BASELINE or baseline is None or baseline.work is None or other is None:
        return None
    half_s = paired_half_s(baseline, other)
    return None if half_s is None else half_s / baseline.work.images_per_call
