"""Passages on tunings: the newest record of a cell is shown, with what the rule says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.docs.blocks import tuned_calls, tuned_claim, tuned_images, tuning_asked, tuning_curve, tunings
from tools.docs.doc_context import DocContext
from tools.docs.result_tree import find_published


def figures(mean: float) -> dict[str, Any]:
    return {"mean": mean, "mean_interval": [mean / 2, 2 * mean], "median": mean / 4, "p90": 3 * mean}


def point(evaluations: int, mean: float, *, verdict: str = "passes", closeness: str = "no farther") -> dict[str, Any]:
    return {
        "evaluations": evaluations, "verdict": verdict, "closeness": closeness,
        "distances": {"fitted": figures(mean), "plain steps": figures(0.08)},
        "ratio_of_fitted_to": {"plain steps": {"value": 0.5, "interval": [0.4, 0.6]}},
    }  # fmt: skip


def tuning(*points: dict[str, Any], precision: str = "float32", fit: int = 128, **more: Any) -> dict[str, Any]:
    return {
        "precision": precision, "items": {"fit": fit, "choose": 4, "held_out": 400}, "points": list(points),
        "baseline": {"in float32": figures(0.03)}, **more,
    }  # fmt: skip


def context_of(tmp_path: Path, records: dict[str, dict[str, Any]]) -> DocContext:
    for name, record in records.items():
        file = tmp_path / "results" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record))
    return DocContext(find_published(tmp_path / "results"))


def test_a_tuning_of_a_newer_folder_takes_the_place_of_its_cell(tmp_path: Path) -> None:
    context = context_of(
        tmp_path,
        {
            "day-1/tune-float32.json": tuning(point(10, 0.05), point(12, 0.06, verdict="fails")),
            "day-2/tune-float32.json": tuning(point(10, 0.04)),
            "day-1/tune-bf16.json": tuning(point(10, 0.07), precision="bf16"),
            "day-1/items-8.json": tuning(point(10, 0.09), fit=8),
        },
    )
    text = tunings.render(context)
    assert "| 10 | 0.0400 (0.0200 to 0.0800), 0.0100: no farther | 0.0700 " in text
    assert "| 12 | 0.0600 (0.0300 to 0.1200), 0.0150: fails |  |  | 0.0800 " in text
    assert "| 28, in float32 | 0.0300 " in text
    curve = tuning_curve.render(context).splitlines()[2:]
    assert [row.split(" | ")[:3] for row in curve] == [
        ["| 8", "4", "0.0900 (0.0450 to 0.1800), 0.0225"],
        ["| 128", "4", "0.0400 (0.0200 to 0.0800), 0.0100"],
    ]


def test_what_as_accurate_asked_stands_beside_other_edits(tmp_path: Path) -> None:
    asked = [
        {"evaluations": number, "closeness": told, **figures(0.02)}
        for number, told in ((16, "no farther"), (14, "cannot tell"))
    ]
    other: dict[str, Any] = {"evaluations": 16, "closeness": "farther", "solver": "fitted, 16"}
    other["distances"] = {"fitted": figures(0.05), "baseline in float32": figures(0.01)}
    context = context_of(
        tmp_path,
        {
            "day/as-accurate-bf16.json": tuning(precision="bf16", asked=asked),
            "day/as-accurate-float32.json": tuning(asked=asked[:1]),
            "day/confirm-bf16.json": {"precision": "bf16", "items": 400, "rows": [other]},
        },
    )
    rows = tuning_asked.render(context).splitlines()
    assert rows[2].startswith("| 16 | 0.0200 (0.0100 to 0.0400), 0.0050: no farther | 0.0200 ")
    assert rows[3] == "| 14 | 0.0200 (0.0100 to 0.0400), 0.0050: cannot tell | not asked |"
    assert "bf16, 16 evaluations on 400 other edits: 0.0500 " in rows[-1]
    assert ": farther (" in rows[-1]


def test_a_call_has_the_newest_ratio_of_each_preset(tmp_path: Path) -> None:
    def study(call: str, ratio: float) -> dict[str, Any]:
        row: dict[str, Any] = {"call": call, "solver": "tuned-10", "closeness": "no farther"}
        row |= {"ratio_to_plain_steps": {"value": ratio, "interval": [ratio / 2, 2 * ratio]}}
        return {"items": 200, "precision": "float32", "device": "a card", "rows": [row]}

    context = context_of(
        tmp_path,
        {"day-1/calls.json": study("guidance 4", 0.3), "day-2/calls.json": study("guidance 4", 0.2)},
    )
    assert "| guidance 4 | 0.20 (0.10 to 0.40) | no farther |" in tuned_calls.render(context)


def test_the_claim_follows_what_was_shown(tmp_path: Path) -> None:
    shown = point(12, 0.02)
    shown["ratio_of_fitted_to"]["as diffusers runs it"] = {"value": 0.5, "interval": [0.4, 0.6]}
    baseline = {"as diffusers runs it": figures(0.03)}
    record = tuning(shown, precision="bf16", steps=28) | {"baseline": baseline}
    text = tuned_claim.render(context_of(tmp_path / "shown", {"day/as-accurate-bf16.json": record}))
    assert "12 fitted evaluations are no farther" in text
    assert "0.0200 in the mean where 28 steps have 0.0300, on 400 held-out edits." in text
    record["points"][0]["closeness"] = "cannot tell"
    assert tuned_claim.render(context_of(tmp_path / "not", {"day/as-accurate-bf16.json": record})) == ""


def test_what_a_judge_accepts_stands_beside_the_distance(tmp_path: Path) -> None:
    counts = {name: {"accepted": 3, "of": 4} for name in ("accepted", "accepted_of_open", "accepted_of_single_answer")}
    row = {"rule": "fitted, 12", "distances_to_28_steps": figures(0.02), **counts}
    study = {"items": 8, "precision": "float32", "rows": [row]}
    text = tuned_images.render(context_of(tmp_path, {"day/images-float32.json": study}))
    assert "| fitted, 12 | 0.0200 (0.0100 to 0.0400), 0.0050 | 3 of 4 | 3 of 4 | 3 of 4 |" in text
