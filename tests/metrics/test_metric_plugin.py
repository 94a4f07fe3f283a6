"""A metric is one file: dropped into the package, it is discovered, scored, checked with its controls and shown."""

from __future__ import annotations

from pathlib import Path

from kontext_fast import metrics
from kontext_fast.metrics.base import discover
from kontext_fast.report.output.quality_page import write_quality_page
from kontext_fast.verify.analysis import analyze
from tests.conftest import AddPlugin
from tests.verify.synthetic_results import untouched, verification

METRIC = """
import numpy as np

from kontext_fast.metrics.base import Control, Metric, Need, Role


class DummyDifference(Metric):
    name = "dummy_difference"
    title = "a dummy metric"
    role = Role.QUALITY
    needs = (Need("a target", lambda case: case.item.target is not None, of_item=True),)
    must_detect = frozenset({Control.UNEDITED})
    bounded = True

    def scores(self, cases):
        pairs = [(np.asarray(case.output, float), np.asarray(case.item.target, float)) for case in cases]
        return [bool(np.abs(output - target).max() < 60) for output, target in pairs]
"""


def test_dummy_metric_is_scored_checked_and_shown(add_plugin: AddPlugin, tmp_path: Path) -> None:
    dummy_metric = "dummy_difference"
    add_plugin(metrics, dummy_metric, METRIC, discover)
    assert discover()[dummy_metric].title == "a dummy metric"
    store = verification(tmp_path / "out", {"faithful": untouched}, items=6, control_items=6)
    result = store.load()
    assert all(any(score.metric == dummy_metric for score in record.scores) for record in result.records)
    analysis = analyze(result)
    assert dummy_metric in {facts.name for facts in analysis.metrics}
    assert dummy_metric not in analysis.insensitive
    detected = {check.control: check.detected for check in analysis.control_checks if check.metric == dummy_metric}
    assert detected["unedited input"] is True
    assert dummy_metric in write_quality_page(store.folder).read_text()
