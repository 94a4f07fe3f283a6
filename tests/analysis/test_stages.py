from __future__ import annotations

import pytest

from kontext_fast.analysis.groups import groups
from kontext_fast.analysis.stages import stage_rows
from tests.records.builder import record, result, sample, timed


def test_stages_and_rest_add_up_to_the_call() -> None:
    (group,) = groups(result([timed("baseline", r, [1.0 + r, 2.0 + r]) for r in (0, 1)]))
    (row,) = stage_rows(group)
    assert row.stages["denoise"] == pytest.approx(0.8 * 2.0)
    assert sum(row.stages.values()) + row.rest == pytest.approx(2.0)


def test_steps_are_grouped_by_kind() -> None:
    slow_then_fast = sample("a", 1.0, skipped=2).model_copy(update={"steps_s": (0.4, 0.2, 0.01, 0.03)})
    (group,) = groups(result([record("cache", 0, [slow_then_fast, slow_then_fast.model_copy(update={"item": "b"})])]))
    (row,) = stage_rows(group)
    assert row.steps == {"full": pytest.approx(0.3), "skipped": pytest.approx(0.02)}


def test_stages_have_no_row_for_unmeasured_preset() -> None:
    (group,) = groups(
        result([timed("baseline", 0, [1.0, 1.0]), record("compile", 0, status="refused", reason="No compiler.")])
    )
    assert [row.preset for row in stage_rows(group)] == ["baseline"]
