"""Verdicts of a verification stand beside the times of a benchmark, with the weights they were found on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kontext_fast.cli.main import run
from kontext_fast.records.schema import AppliedOptimization
from kontext_fast.records.store import ResultStore
from kontext_fast.report.charting import write_charts
from kontext_fast.report.charts.benchmark import cost_summary
from kontext_fast.report.text.quality import level_name
from kontext_fast.verify.analysis import analyze
from tests.cost.gpu_records import gpu_result
from tests.report.reports import report_of
from tests.verify.synthetic_results import noisy, verification

AUDIENCES = {"page": "index.html", "blog": "blog.md", "paper": "paper.tex", "business": "business.md"}


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`classic` moved by noise, on very few items."""
    return verification(tmp_path_factory.mktemp("verified"), {"classic": noisy(0.5)}, items=6, control_items=4).folder


@pytest.fixture
def benched(tmp_path: Path) -> Path:
    ResultStore(tmp_path / "h200").write(gpu_result())
    return tmp_path / "h200"


def test_verdict_summary_equals_the_verification(verified: Path) -> None:
    (one,) = analyze(ResultStore(verified).load()).presets
    verdicts = report_of(gpu_result(), verified).verdicts
    assert verdicts.keys() == {"classic"}
    classic = verdicts["classic"]
    assert classic.name == level_name(one.verdict.level)
    assert classic.reason == one.verdict.reason
    assert classic.passes == one.verdict.level.passes
    assert classic.where == "verified on tiny, 6 items"


def test_undecided_verdict_says_how_many_edits_did_not_decide(verified: Path) -> None:
    classic = report_of(gpu_result(), verified).verdicts["classic"]
    assert replace(classic, level="L2").words == "within the margins on tiny"
    assert replace(classic, level="cannot tell").words == "undecided by 6 edits of tiny"


def test_loss_in_one_way_of_use_says_what_usual_calls_are(verified: Path) -> None:
    classic = replace(report_of(gpu_result(), verified).verdicts["classic"], level="L3")
    assert classic.words == "a loss was measured on tiny"
    guided = replace(classic, usual_level="L2", lost_in="true CFG")
    assert guided.words == "within the margins on tiny, but a loss with true CFG"


@pytest.mark.parametrize(("revision", "shown"), [(1, True), (2, False)])
def test_verdict_on_another_revision_is_none_on_what_was_timed(
    verified: Path, tmp_path: Path, revision: int, shown: bool
) -> None:
    result = ResultStore(verified).load()
    plan = (AppliedOptimization(name="classic", effect="lossy", revision=revision),)
    records = [
        record.model_copy(update={"plan": plan}) if record.preset == "classic" else record for record in result.records
    ]
    ResultStore(tmp_path).write(result.model_copy(update={"records": tuple(records)}))
    (group,) = (group for group in report_of(gpu_result(), tmp_path).groups if group.group.row("classic"))
    assert (group.quality["classic"].verdict is not None) is shown


@pytest.mark.parametrize("audience", AUDIENCES)
def test_every_document_shows_the_verdict_and_its_weights(benched: Path, verified: Path, audience: str) -> None:
    def written(*options: str) -> str:
        assert run(["report", str(benched), "--for", audience, *options]) == 0
        return (benched / "reports" / AUDIENCES[audience]).read_text(encoding="utf-8")

    one = report_of(gpu_result(), verified).verdicts["classic"]
    assert one.where not in written()
    text = written("--verification", str(verified))
    assert one.where in text
    assert one.name in text
    if audience != "blog":
        assert one.reason.removesuffix(".").split(":")[0] in text.replace("\\", "")


def test_summary_chart_shows_the_verdict(benched: Path, verified: Path, tmp_path: Path) -> None:
    def picture(folder: Path | None) -> bytes:
        drawn = cost_summary.draw(report_of(gpu_result(), folder)).picture
        assert drawn is not None
        return drawn.png()

    assert picture(verified) != picture(None)
    drawn = {chart.path.name: chart for chart in write_charts(report_of(gpu_result()), tmp_path) if chart.path}
    assert "h200_summary.png" in drawn


def test_benchmark_records_are_not_a_verification(benched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(benched), "--verification", str(benched)]) == 2
    assert "not of a verification" in capsys.readouterr().err
