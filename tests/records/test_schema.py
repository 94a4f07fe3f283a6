from __future__ import annotations

import json
import math
import re

import pytest
from pydantic import BaseModel, ValidationError

from kontext_fast.records import schema
from tests.records.builder import result, sample, timed


def test_records_round_trip_through_json() -> None:
    written = result([timed("baseline", 1, [1.0, 1.1]), timed("cache", 1, [0.5, 0.6], skipped=2)])
    assert schema.ResultFile.model_validate(json.loads(written.model_dump_json())) == written


def test_schema_has_no_field_for_a_statistic() -> None:
    models = [m for m in vars(schema).values() if isinstance(m, type) and issubclass(m, BaseModel)]
    fields = {name for model in models for name in model.model_fields}
    assert "wall_s" in fields
    statistic = re.compile(r"(^|_)(mean|median|average|std|sd|p\d+|speedup|ratio|factor|summary|interval)(_|$)")
    assert not [name for name in fields if statistic.search(name)]


@pytest.mark.parametrize("wall_s", [math.nan, math.inf, 0.0, -1.0])
def test_time_must_be_finite_and_positive(wall_s: float) -> None:
    with pytest.raises(ValidationError):
        sample("a", wall_s)


def test_unknown_keys_are_an_error() -> None:
    data = json.loads(result([]).model_dump_json()) | {"mean_s": 1.0}
    with pytest.raises(ValidationError, match="mean_s"):
        schema.ResultFile.model_validate(data)
