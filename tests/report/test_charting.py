"""A chart is one module, found on the page without being named anywhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from kontext_fast.errors import KontextError
from kontext_fast.records.store import ResultStore
from kontext_fast.report.charting import write_charts, write_verification_charts
from kontext_fast.report.charts import benchmark, verification
from kontext_fast.report.output.publish import publish
from kontext_fast.report.output.quality_page import write_quality_page
from kontext_fast.report.verification import build_verification_report
from tests.conftest import AddPlugin
from tests.records.builder import full
from tests.report.reports import report_of
from tests.verify.synthetic_results import untouched
from tests.verify.synthetic_results import verification as verified

CHART = """
from kontext_fast.report.charting import Chart
from kontext_fast.report.plots import style

SECTION = "{section}"
FILE = "{folder}/{name}.png"


def draw(report):
    return Chart(title="A dummy chart", how_to_read="At a glance.", takeaway="{section}", alt="Nothing.",
                 picture=style.Picture(lambda canvas: style.new_figure(1.0, canvas.width_in)))
"""


AddChart = Callable[[ModuleType, str, str, str], None]


@pytest.fixture
def add(add_plugin: AddPlugin) -> AddChart:
    """Adds a module with a dummy chart to a package of charts."""

    def add_chart(package: ModuleType, name: str, section: str, folder: str) -> None:
        add_plugin(package, name, CHART.format(section=section, folder=folder, name=name))

    return add_chart


def test_dummy_chart_of_a_benchmark_is_on_the_page(add: AddChart, tmp_path: Path) -> None:
    add(benchmark, "dummy_speed", "speed", "performance")
    store = ResultStore(tmp_path / "out")
    store.write(full(store))
    published = publish(store.folder)
    assert "A dummy chart" in published.document.read_text()
    assert (store.folder / "visualizations" / "performance" / "dummy_speed.png").is_file()


def test_dummy_chart_of_a_verification_is_on_the_page(add: AddChart, tmp_path: Path) -> None:
    add(verification, "dummy_quality", "quality", "quality")
    store = verified(tmp_path / "out", {"faithful": untouched}, items=4, control_items=4)
    assert "A dummy chart" in write_quality_page(store.folder).read_text()
    assert (store.folder / "visualizations" / "quality" / "dummy_quality.png").is_file()
    charts = write_verification_charts(build_verification_report(store.load()), tmp_path / "charts")
    assert "A dummy chart" in [chart.title for chart in charts]


def test_chart_in_unknown_section_is_refused(add: AddChart, tmp_path: Path) -> None:
    add(benchmark, "dummy_lost", "nowhere", "performance")
    with pytest.raises(KontextError, match="is in section 'nowhere'; choose one of frontier"):
        write_charts(report_of(full(ResultStore(tmp_path / "out"))), tmp_path / "charts")
