"""What a project publishes is what its records say, and a document that says something else is found out."""

from __future__ import annotations

import math
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from kontext_fast import discovery
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import ResultFile
from kontext_fast.records.store import ResultStore
from kontext_fast.report.charts import benchmark
from kontext_fast.report.text.quality import level_name
from kontext_fast.verify.analysis import analyze
from tests.records.builder import full
from tests.tools.project_records import FEWER, REFUSED, project
from tests.verify.synthetic_results import losing, noisy, untouched, verification
from tools.docs import blocks
from tools.docs.doc_context import NOTHING, discover_blocks
from tools.docs.repository import differences, render_repository

ALWAYS = {"reports/index.html", "reports/blog.md", "reports/paper.tex", "reports/business.md", "results/samples.csv"}
PERFORMANCE = {
    "ablation.png", "cold_start.png", "like_for_like.png", "memory_usage.png", "resolution_scaling.html",
    "resolution_scaling.png", "speedup_comparison.png", "stage_breakdown.png", "step_resolution_heatmap.png",
}  # fmt: skip
"""What is drawn of the suites of `project`; a new chart may add its picture."""


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three processes per preset, rendered once."""
    root = project(tmp_path_factory.mktemp("rendered"), rounds=3)
    render_repository(root)
    return root


@pytest.fixture
def three(rendered: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(rendered, tmp_path / "three"))


def cells(root: Path, preset: str) -> list[str]:
    """The row of a preset in the README's headline."""
    rows = [line for line in (root / "README.md").read_text().splitlines() if line.startswith(f"| `{preset}`")]
    return [cell.strip() for cell in rows[0].strip("|").split("|")]


def records_file(root: Path) -> Path:
    return root / "results" / "h200" / "peers" / "results" / "benchmark_results.json"


def seconds(of: ResultFile, preset: str) -> list[float]:
    """One value per process, computed from nothing but the records."""
    found = []
    for run in of.records:
        if run.preset == preset and run.status == "ok":
            by_item: dict[str, list[float]] = defaultdict(list)
            for sample in run.measurements[0].samples:
                if not sample.warmup:
                    by_item[sample.item].append(sample.wall_s)
            found.append(float(np.mean([np.mean(values) for values in by_item.values()])))
    return found


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.\d+", text)]


def assert_written(text: str, values: Sequence[float]) -> None:
    """Every value, to the digits that are written."""
    written = numbers(text)
    assert len(written) == len(values), text
    for shown, value in zip(written, values, strict=True):
        assert abs(shown - value) < 0.006 * value, (text, value)


def test_project_without_records_has_no_claims_and_charts(tmp_path: Path) -> None:
    root = project(tmp_path)
    render_repository(root)
    text = (root / "README.md").read_text()
    assert text.count(NOTHING) == 5
    assert "Words of a person." in text
    assert next(line for line in text.splitlines() if line.startswith("| `fast`")).count("not measured") == 2
    assert not re.search(r"\d+\.\d+x|\$\d", text)
    assert "no records yet" in (root / "docs" / "results.md").read_text()
    assert sorted(path.name for path in root.iterdir()) == ["README.md", "docs"]
    assert differences(root) == []


def test_headline_equals_the_records(three: Path) -> None:
    """Computed here a second time, with scipy, from nothing but the records."""
    stored = ResultStore.find(records_file(three)).load()
    baseline, fast = seconds(stored, "baseline"), seconds(stored, "fast")
    _, time, factor, steps, quality, memory, saved, n = cells(three, "fast")
    interval = stats.ttest_1samp(fast, 0).confidence_interval(0.95)
    assert_written(time, [float(np.mean(fast)), interval.low, interval.high])
    logs = np.log(baseline) - np.log(fast)
    bounds = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert_written(factor, [math.exp(value) for value in (float(np.mean(logs)), bounds.low, bounds.high)])
    assert (steps, quality, memory, n) == ("28 of 28", "not measured", "39.0 GiB", "3")
    assert re.fullmatch(r"\$[\d,]+ \(\$[\d,]+ to \$[\d,]+\)", saved)


def test_headline_shows_peers_failures_and_labels(three: Path) -> None:
    text = (three / "README.md").read_text()
    assert "turbo is 4." in text
    assert "The fastest peer is peer:steps-8: 5." in text
    name, _, factor, steps, *_ = cells(three, "peer:steps-8")
    (footnote,) = re.findall(r"<sup>(\d)</sup>", name)
    assert f"- <sup>{footnote}</sup> {FEWER}" in text
    assert (steps, factor.startswith("5.")) == ("8 of 8", True)
    for preset, reason in REFUSED.items():
        assert f"- `{preset}`: refused. " in text
        assert re.sub(r"\W", "", reason) in re.sub(r"\W", "", text)
    assert "A/A control: baseline against baseline is 1." in text
    assert "image quality is not measured" in text


def test_readme_blocks_equal_the_records(three: Path) -> None:
    """Seconds of the first sentence and of the tables, computed here a second time."""
    stored = ResultStore.find(records_file(three)).load()
    text = (three / "README.md").read_text()

    def mean(preset: str) -> str:
        value = float(np.mean(seconds(stored, preset)))
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"

    assert f"edits in {mean('turbo')} instead of {mean('baseline')} on one H200" in text
    # In these records `fast` computes every step, too.
    assert f"and in {mean('fast')} with every step computed" in text
    for preset in ("balanced", "turbo"):
        row = next(line for line in text.splitlines() if f"| `{preset}` |" in line)
        assert mean(preset) in row
        assert "39.0 GiB" in row
    rival = f"| 12 evaluations, 16 bit | cache-dit-12-of-28: {mean('peer:cache-dit-12-of-28')}"
    assert any(line.startswith(rival) and f"`turbo`: {mean('turbo')}" in line for line in text.splitlines())
    assert "Not timed: `peer:para-attention` (refused), " in text
    assert "`peer:flux-fast` (not measured)" in text
    assert "- `peer:flux-fast`: not measured." in text
    assert not re.search(r"peer:(compiled|steps-8)`:? \(?not measured", text)
    assert "first images of other recipes with empty compile caches" in text


def test_hero_is_written_for_every_screen_and_scheme(three: Path) -> None:
    text = (three / "README.md").read_text()
    inks = {"": "#1c1d1f", "-dark": "#eceef0"}
    for screen, widest in (("", 900), ("-narrow", 360)):
        for scheme, ink in inks.items():
            name = f"hero{screen}{scheme}.svg"
            assert f'"visualizations/{name}"' in text
            drawn = (three / "visualizations" / name).read_text()
            assert ink in drawn
            assert "turbo" in drawn
            # On a phone a picture of 360 units has no letters below 10 pixels.
            assert float(re.findall(r' width="([\d.]+)"', drawn)[0]) <= widest
            assert min(map(float, re.findall(r'font-size="([\d.]+)"', drawn))) >= 10
    conditions = re.findall(r'<source media="([^"]*)" srcset="visualizations/([^"]*)">', text)
    assert conditions == [
        ("(max-width: 600px) and (prefers-color-scheme: dark)", "hero-narrow-dark.svg"),
        ("(max-width: 600px)", "hero-narrow.svg"),
        ("(prefers-color-scheme: dark)", "hero-dark.svg"),
    ]


@pytest.mark.parametrize(("rounds", "words"), [(1, "(one process)"), (2, "(2 runs, no interval)")])
def test_two_processes_give_no_interval_and_no_claim(tmp_path: Path, rounds: int, words: str) -> None:
    root = project(tmp_path, rounds=rounds)
    render_repository(root)
    text = (root / "README.md").read_text()
    assert "no preset can be called faster than baseline yet" in text
    time = cells(root, "fast")[1]
    assert time.endswith("(no interval)") if rounds == 1 else time.startswith("2 runs: ")
    rival = next(line for line in text.splitlines() if line.startswith("| 12 evaluations, 16 bit | "))
    assert rival.count(words) == 2
    assert "a star marks fewer than three processes" in text
    assert cells(root, "fast")[2].endswith("(no interval)")
    assert "turbo is 4." not in text


def test_several_benchmarks_become_one_set_of_charts(tmp_path: Path) -> None:
    root = project(tmp_path, rounds=2, suites=True)
    render_repository(root)
    files = {Path(module.FILE) for module in discovery.modules(benchmark).values()}
    pictures = {file.name for file in files if file.parent.name == "performance"}
    drawn = {path.name for path in (root / "visualizations" / "performance").iterdir()}
    assert PERFORMANCE <= drawn <= PERFORMANCE | pictures
    guide = (root / "docs" / "results.md").read_text()
    links = re.findall(r"\]\(\.\./(visualizations/[^)]+)\)", guide)
    assert {Path(link).name for link in links} >= drawn
    assert all((root / link).is_file() for link in links)
    assert guide.count("Key takeaway: ") == guide.count("How to read it: ") >= len(drawn) - 1
    for suite in ("--peers", "--suite full", "--suite ablation", "--suite cold"):
        assert f"- `kontext bench --checkpoint random {suite}`" in guide
    # The sweep measured the centre as well: three more processes of baseline, and blocks of its own for the factor.
    assert cells(root, "baseline")[-1] == "5"
    assert cells(root, "balanced")[-1] == "2"
    assert "-only-" not in (root / "README.md").read_text()
    assert "results/h200/peers/results/benchmark_results.json and " not in guide
    assert "results/h200/peers/results/benchmark_results.json" in (root / "reports" / "index.html").read_text()
    # Of several files the post names none; it sends its readers to the page.
    assert "The page names the records of every number." in (root / "reports" / "blog.md").read_text()
    assert differences(root) == []


def test_differences_find_typed_numbers(three: Path) -> None:
    readme = three / "README.md"
    time = cells(three, "fast")[1]
    readme.write_text(readme.read_text().replace(time, time.replace("3.", "2.", 1)))
    edited = ("reports/blog.md", "reports/index.html", "results/samples.csv")
    for name in edited:
        (three / name).write_text((three / name).read_text() + "and it is 9 times as fast\n")
    assert differences(three) == [f"{name} differs from its records" for name in ("README.md", *edited)]


def test_differences_find_changed_records_in_documents(three: Path) -> None:
    path = records_file(three)
    stored = ResultStore.find(path).load()
    kept = tuple(record for record in stored.records if record.preset != "fast")
    ResultStore.find(path).write(stored.model_copy(update={"records": kept}))
    assert {
        "README.md differs from its records",
        "reports/index.html differs from its records",
        "results/samples.csv differs from its records",
    } <= set(differences(three))


def test_differences_find_stale_and_missing_files_alone(three: Path) -> None:
    assert all((three / name).is_file() for name in ALWAYS)
    (three / "visualizations" / "performance" / "speedup_comparison.png").unlink()
    assert differences(three) == ["visualizations/performance/speedup_comparison.png is not rendered"]
    records_file(three).unlink()
    found = differences(three)
    assert "reports/blog.md is of records that are gone" in found
    assert "README.md differs from its records" in found


def test_cpu_times_are_never_the_headline(tmp_path: Path) -> None:
    root = project(tmp_path)
    store = ResultStore(root / "results" / "laptop")
    store.write(full(store))
    render_repository(root)
    assert (root / "README.md").read_text().count(NOTHING) == 5
    assert "Imaginary CPU 9000" in (root / "docs" / "results.md").read_text()
    assert (root / "reports" / "index.html").read_text().count("data:image/png") > 1


def test_presets_table_shows_verdicts_of_a_verification(tmp_path: Path) -> None:
    root = project(tmp_path)
    presets = {"fast": noisy(0.5, seed=9), "turbo": losing(2)}
    store = verification(root / "results" / "quality", presets, items=6, control_items=3)
    # Of one preset again, which leaves the verdict on the other, and the page with both, as they were.
    later = verification(root / "results" / "quality-2", {"turbo": untouched}, items=4, control_items=3)
    render_repository(root)
    rows = {line.split("`")[1]: line for line in (root / "README.md").read_text().splitlines() if "| `" in line}
    judged = [*analyze(store.load()).presets, *analyze(later.load()).presets]
    verdicts = {analysis.preset: analysis.verdict.level for analysis in judged}
    assert set(verdicts) == set(presets)
    assert len(set(verdicts.values())) == 2
    assert verdicts["turbo"] is not judged[1].verdict.level
    for preset, level in verdicts.items():
        assert rows[preset].split(" | ")[3] == f"**{level_name(level)}**"
    assert rows["balanced"].split(" | ")[3] == "not measured"
    page = (root / "visualizations" / "quality" / "index.html").read_text()
    assert "Since then, with 4 items:" in page
    assert 'data-preset="fast"' in page
    assert not (root / "reports").exists()
    assert "verification on Imaginary CPU 9000, 6 items" in (root / "docs" / "results.md").read_text()
    assert differences(root) == []


def test_unknown_passage_is_bad_input_that_lists_known_ones(tmp_path: Path) -> None:
    root = project(tmp_path)
    readme = root / "README.md"
    readme.write_text(readme.read_text().replace("records: headline", "records: hedline"))
    with pytest.raises(
        InvalidInput, match=r"no passage 'hedline'; choose attention, .*charts, choices, .*first_image, .*headline"
    ):
        render_repository(root)


def test_passages_are_discovered() -> None:
    modules = {path.stem for path in Path(blocks.__file__).parent.glob("*.py") if path.stem != "__init__"}
    assert set(discover_blocks()) == modules
