"""The table of presets in the documentation says what the records say, and nothing of presets that changed since."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kontext_fast.analysis.benchmark import AnalyzedGroup, analyze_benchmark
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.presets import PRESETS, Plan
from kontext_fast.optimizations.techniques.compile import Compile
from kontext_fast.optimizations.techniques.device_pixels import DevicePixels
from kontext_fast.optimizations.techniques.prompt_cache import PromptCache
from kontext_fast.optimizations.techniques.text_graphs import TextGraphs
from kontext_fast.records.schema import EMULATED, AppliedOptimization
from kontext_fast.report.verification import VerificationReport, build_verification_report
from tests.records.builder import result, timed
from tests.verify.synthetic_results import losing, untouched, verification
from tools.docs.presets_table import CHANGED, ON_YOUR_WEIGHTS, SHOWN, presets_table


def _applied(name: str, *added: Optimization) -> tuple[AppliedOptimization, ...]:
    return Plan(name, (*PRESETS[name].optimizations, *added)).applied


def _of_an_earlier_revision(plan: tuple[AppliedOptimization, ...]) -> tuple[AppliedOptimization, ...]:
    return tuple(
        applied.model_copy(update={"revision": applied.revision - 1}) if applied.name == "engine" else applied
        for applied in plan
    )


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> VerificationReport:
    store = verification(
        tmp_path_factory.mktemp("verified"),
        {"faithful": untouched, "turbo": losing(1), "classic": untouched},
        items=8,
        control_items=8,
    )
    found = store.load()
    plans = {name: _applied(name) for name in ("faithful", "turbo")}
    # Of an earlier version, in which classic was something else.
    plans["classic"] = (AppliedOptimization(name="compile", effect="numeric", parameters={"mode": "whole"}),)
    records = [record.model_copy(update={"plan": plans.get(record.preset, ())}) for record in found.records]
    return build_verification_report(found.model_copy(update={"records": tuple(records)}))


@pytest.fixture(scope="module")
def benched() -> tuple[AnalyzedGroup, ...]:
    records = []
    for round_ in range(3):
        drift = 1 + 0.03 * round_
        records.append(timed("baseline", round_, [1.0 * drift, 1.0 * drift]))
        records.append(timed("faithful", round_, [0.5 * drift, 0.5 * drift], plan=_applied("faithful")))
        records.append(timed("fast", round_, [0.2, 0.2], plan=_applied("fast"), labels=(EMULATED,)))
        records.append(timed("turbo", round_, [0.2, 0.2], plan=_applied("fast")))
    return analyze_benchmark(result(records))


@pytest.fixture(scope="module")
def on_a_card() -> tuple[AnalyzedGroup, ...]:
    """Before and after presets got techniques for CUDA, and with one that they never had."""
    records = []
    plans = {
        "baseline": (),
        "faithful": _applied("faithful"),
        "balanced": _applied("balanced", *PRESETS["balanced"].on_cuda),
        "fast": _applied("fast", *PRESETS["fast"].on_cuda[:1]),
        "turbo": _applied("turbo", PromptCache()),
    }
    for round_ in range(3):
        for name, plan in plans.items():
            record = timed(name, round_, [1.0 + 0.01 * round_] * 2, plan=plan)
            records.append(record.model_copy(update={"environment": {"gpu": {"name": "NVIDIA Imaginary"}}}))
    return analyze_benchmark(result(records))


def _cells(table: str) -> dict[str, list[str]]:
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): cells for cells in rows}


def test_presets_table_without_records_is_not_measured() -> None:
    table = presets_table(None, [])
    assert list(_cells(table)) == list(SHOWN)
    assert all(cells[3:] == ["not measured", "not measured"] for cells in _cells(table).values())
    assert ON_YOUR_WEIGHTS in table
    assert "run `kontext verify`" in table


def test_presets_table_has_verdicts_and_speeds_of_records(
    verified: VerificationReport, benched: tuple[AnalyzedGroup, ...]
) -> None:
    table = presets_table(verified, benched)
    cells = _cells(table)
    assert cells["faithful"][2:4] == ["numeric", "**L0 identical**"]
    assert cells["faithful"][4].startswith("2.00")
    assert cells["turbo"][2] == "lossy"
    assert "L0" not in cells["turbo"][3]
    assert "8 items of shapes, 2 seeds each" in table
    assert "| preset |" in table.splitlines()[0]
    assert all(line.count(" | ") == 4 for line in table.splitlines() if line.startswith("| "))


def test_presets_table_hides_results_of_changed_presets(
    verified: VerificationReport, benched: tuple[AnalyzedGroup, ...]
) -> None:
    cells = _cells(presets_table(verified, benched))
    assert cells["classic"][3] == CHANGED
    assert cells["turbo"][4] == CHANGED


def test_presets_table_hides_results_of_an_earlier_revision_of_a_technique(verified: VerificationReport) -> None:
    records = [
        record.model_copy(update={"plan": _of_an_earlier_revision(record.plan)}) for record in verified.result.records
    ]
    before = build_verification_report(verified.result.model_copy(update={"records": tuple(records)}))
    plan = _of_an_earlier_revision(_applied("faithful"))
    times = [timed(name, 0, [1.0, 1.0], plan=plan if name == "faithful" else ()) for name in ("baseline", "faithful")]
    cells = _cells(presets_table(before, analyze_benchmark(result(times))))
    assert cells["faithful"][3:5] == [CHANGED, CHANGED]


def test_time_without_what_cuda_has_today_is_said_so(on_a_card: tuple[AnalyzedGroup, ...]) -> None:
    table = presets_table(None, on_a_card)
    speeds = {name: cells[4] for name, cells in _cells(table).items()}
    assert all(speeds[name].startswith("1.00x") for name in ("faithful", "balanced", "fast"))
    assert speeds["turbo"] == CHANGED, "a cache takes more away than what the preset has"
    words = [line for line in table.splitlines() if "Measured without" in line]
    assert words == [
        "- Measured without `text_graphs`, `device_pixels`, which on CUDA only take time away: `faithful`.",
        "- Measured without `device_pixels`, which on CUDA only take time away: `fast`.",
    ]


def test_verdict_stays_where_exact_techniques_alone_differ(verified: VerificationReport) -> None:
    def level_of(*added: Optimization) -> str:
        records = [
            record.model_copy(update={"plan": _applied("faithful", *added)}) if record.preset == "faithful" else record
            for record in verified.result.records
        ]
        result_file = verified.result.model_copy(update={"records": tuple(records)})
        return _cells(presets_table(build_verification_report(result_file), []))["faithful"][3]

    assert level_of() == level_of(TextGraphs(), DevicePixels()) == "**L0 identical**"
    assert level_of(Compile()) == CHANGED


def test_newer_verification_of_one_preset_has_its_verdict_alone(verified: VerificationReport, tmp_path: Path) -> None:
    later = verification(tmp_path, {"turbo": untouched}, items=9, control_items=8).load()
    records = [record.model_copy(update={"plan": _applied("turbo")}) for record in later.records]
    newer = build_verification_report(later.model_copy(update={"records": tuple(records)}))
    table = presets_table(replace(verified, newer=(newer,)), [])
    before, after = _cells(presets_table(verified, [])), _cells(table)
    assert after["turbo"][3] == "**L0 identical**" != before["turbo"][3]
    assert after["faithful"] == before["faithful"]
    assert "- Verdicts: 8 items of shapes" in table
    assert "- That of `turbo`: 9 items of shapes" in table
    assert "- `turbo`: Every output is the same, bit for bit" in table


def test_an_emulated_kernel_has_no_speed(verified: VerificationReport, benched: tuple[AnalyzedGroup, ...]) -> None:
    speed = _cells(presets_table(verified, benched))["fast"][4]
    assert speed == "not measured: emulated kernel: not a speed"
