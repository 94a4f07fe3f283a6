"""The data of the page's cost form: the answer of `kontext cost --json`, and what a reader may change in it."""

from __future__ import annotations

from typing import Any

from kontext_fast.report import format as write
from kontext_fast.report.sections import Section
from kontext_fast.report.story import Story


def live_data(story: Story) -> dict[str, Any]:
    """JSON values, presets in the order of the page."""
    answer = dict(story.costs.live)
    answer["groups"] = [
        group | {"presets": _presets(group["presets"], section, story)}
        for group, section in zip(answer["groups"], story.sections, strict=True)
        if section.group.runs
    ]
    return answer


def _presets(priced: list[dict[str, Any]], section: Section, story: Story) -> list[dict[str, Any]]:
    by_name = {preset["preset"]: preset for preset in priced}
    names = [row.preset for row in section.rows if row.preset in by_name]
    return [_preset(by_name[name], section, story) for name in names]


def _preset(preset: dict[str, Any], section: Section, story: Story) -> dict[str, Any]:
    cost = section.cost_of(preset["preset"])
    time = cost.seconds_per_image if cost else None
    return preset | {
        "time": write.seconds_estimate(time) if time else write.NOT_MEASURED,
        "time_range": (write.seconds_range(time) if time else None) or "no interval",
        "records": [story.numbers[run_id] for run_id in preset["run_ids"]],
    }
