"""The table of presets in the documentation says what the records say, and nothing of presets that changed since."""

from __future__ import annotations

import pytest

from kontext_fast.analysis.benchmark import AnalyzedGroup, analyze_benchmark
from kontext_fast.optimizations.presets import PRESETS
from kontext_fast.records.schema import EMULATED, AppliedOptimization
from kontext_fast.report.verification import VerificationReport, build_verification_report
from tests.records.builder import result, timed
from tests.verify.synthetic_results import losing, untouched, verification
from tools.docs.presets_table import CHANGED, ON_YOUR_WEIGHTS, SHOWN, presets_table


def _applied(name: str) -> tuple[AppliedOptimization, ...]:
    return tuple(
        AppliedOptimization(name=one.name, effect=one.effect.value, parameters=one.parameters())
        for one in PRESETS[name].optimizations
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


def test_an_emulated_kernel_has_no_speed(verified: VerificationReport, benched: tuple[AnalyzedGroup, ...]) -> None:
    speed = _cells(presets_table(verified, benched))["fast"][4]
    assert speed == "not measured: emulated kernel: not a speed"
