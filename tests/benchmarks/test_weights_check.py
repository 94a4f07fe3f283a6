from __future__ import annotations

from benchmarks.gpu.weights_check import measured
from tests.pipelines import SIDE, small_pipeline


def test_small_model_is_written_read_and_exchanged() -> None:
    report = measured(small_pipeline(), "faithful", SIDE)
    assert 1e-4 < report["relative_error_of_a_step"] < 0.1
    assert len(report["exchange_s"]) == 3
    assert all(seconds > 0 for seconds in report["exchange_s"])
