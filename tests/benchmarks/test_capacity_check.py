"""The forecast of capacity against a server: what counts as agreeing, and the whole check on a quiet machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import capacity_check
from kontext_fast.analysis.served_load import Percentile
from kontext_fast.cost.capacity import capacity_of


def test_forecast_holds_in_the_interval_or_near_it() -> None:
    calls = [0.1] * 50
    forecast = capacity_of(1, calls, 5.0).latency_p95_s + 0.01
    for p95, holds in (
        (Percentile(2 * forecast, 0.9 * forecast, 3 * forecast), True),
        (Percentile(forecast / 1.14, forecast / 1.14, forecast / 1.14), True),
        (Percentile(1.2 * forecast, 1.1 * forecast, 1.3 * forecast), False),
        (Percentile(forecast / 1.2, forecast / 1.3, forecast / 1.1), False),
    ):
        row = capacity_check.compared(calls, 5.0, 0.01, p95)
        assert row["holds"] is holds
        assert row["share"] == pytest.approx(0.5)
    assert not capacity_check.compared(calls, 10.5, 0.01, Percentile(1.0, 0.5, 2.0))["holds"]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_forecast_holds_against_a_server_at_three_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "capacity.json"
    monkeypatch.setattr(sys, "argv", ["capacity_check", "--out", str(out)])
    assert capacity_check.main() == 0, out.read_text()
    assert len(json.loads(out.read_text())["loads"]) == 3
