from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from kontext_fast.cli.main import run
from kontext_fast.cost.prices import load_prices
from kontext_fast.records.schema import ResultFile
from kontext_fast.records.store import ResultStore
from tests import needs
from tests.cost.gpu_records import gpu_result, gpu_run
from tests.records.builder import full, record, result, timed
from tests.report.suite_records import sweep

AUDIENCES = {"page": "index.html", "blog": "blog.md", "paper": "paper.tex", "business": "business.md"}


@pytest.fixture
def h200(tmp_path: Path) -> Path:
    return stored(tmp_path / "h200", gpu_result())


def stored(folder: Path, records: ResultFile) -> Path:
    ResultStore(folder).write(records)
    return folder


def written(records: Path, audience: str, *options: str) -> str:
    assert run(["report", str(records), "--for", audience, *options]) == 0
    return (records / "reports" / AUDIENCES[audience]).read_text()


def priced(records: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, dict[str, object]]:
    capsys.readouterr()
    assert run(["cost", str(records), *options, "--json"]) == 0
    (group,) = json.loads(capsys.readouterr().out.splitlines()[-1])["groups"]
    return {preset["preset"]: preset for preset in group["presets"]}


@pytest.mark.parametrize("audience", AUDIENCES)
def test_every_document_states_the_licence(h200: Path, audience: str) -> None:
    assert "non-commercial use by default" in written(h200, audience)


@pytest.mark.parametrize("audience", AUDIENCES)
def test_every_document_has_savings_of_the_command(
    h200: Path, audience: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--images-per-day", "4321", "--price", "2.5")
    saved = priced(h200, capsys, *options)["classic"]["saved_usd_per_month"]
    assert isinstance(saved, dict)
    text = written(h200, audience, *options).replace("\\$", "$")
    for dollars in (saved["value"], *saved["interval"]):
        assert f"${dollars:,.0f}" in text


@pytest.mark.parametrize("audience", AUDIENCES)
@pytest.mark.parametrize(
    "records",
    [
        [],
        [record("baseline", 0, status="interrupted", reason="Interrupted.", checkpoint=None, environment={})],
        [timed("cache", 0, [1.0, 1.0])],
        [gpu_run("baseline", 0), record("fast", 0, status="oom", reason="100 % of $_{memory}^{is} #gone & ~more.")],
        [timed("baseline", 0, [1.0, 1.0], labels=("kernel: emulated",)), timed("cache", 0, [0.5, 0.5])],
    ],
    ids=["nothing", "interrupted", "no baseline", "one failed", "one round"],
)
def test_documents_render_for_any_records(tmp_path: Path, audience: str, records: list[object]) -> None:
    text = written(stored(tmp_path / "out", result(records)), audience)  # type: ignore[arg-type]
    assert "non-commercial" in text
    assert "Undefined" not in text


@pytest.mark.parametrize("audience", ["blog", "paper", "business"])
def test_documents_without_price_give_the_reason(tmp_path: Path, audience: str) -> None:
    store = ResultStore(tmp_path / "cpu")
    store.write(full(store))
    text = written(store.folder, audience)
    assert "no price for this machine" in text
    assert not re.search(r"\$\d", text)


def test_blog_begins_with_finding_and_existing_picture(h200: Path) -> None:
    text = written(h200, "blog")
    title, hero = re.split(r"\n\n", text)[:2]
    assert "classic: image editing 2.500x as fast on NVIDIA H200" in title
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert pictures[0] in hero
    assert pictures[0].endswith("h200_summary.png")
    assert all((h200 / "reports" / picture).resolve().is_file() for picture in pictures)


@pytest.mark.parametrize("audience", ["blog", "business"])
def test_document_tables_have_equal_cells_in_every_row(h200: Path, audience: str) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", written(h200, audience), flags=re.MULTILINE)
    assert tables
    for table in tables:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1, table


def test_paper_has_balanced_latex_and_full_tables(tmp_path: Path) -> None:
    evil = r"50_% of {it} & \more $ #1 ~ ^"
    runs = [
        *gpu_result().records,
        gpu_run("compile", 9, order=99).model_copy(update={"preset": evil, "run_id": "evil"}),
    ]
    text = written(stored(tmp_path / "evil", result(runs)), "paper")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
    bare = re.sub(r"\\[{}%&$#_]", "", re.sub(r"(?m)^%.*$", "", text))
    assert bare.count("{") == bare.count("}")
    assert not re.search(r"(?<!\\)[#_]", bare)
    rows = [line for line in bare.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") + 4 * line.count("multicolumn") for line in rows} == {5}


def test_published_blog_is_a_post() -> None:
    """Some 700 words, three charts and one table of six rows."""
    blog = (Path(__file__).parents[2] / "reports" / "blog.md").read_text(encoding="utf-8")
    assert 300 < len(blog.split()) <= 700
    assert len(re.findall(r"!\[", blog)) == 3
    (table,) = re.findall(r"(?:^\|.*\n)+", blog, flags=re.MULTILINE)
    assert len(table.splitlines()) == 2 + 6
    assert {"| baseline |", "| turbo |", "| peer:steps-8 |"} <= set(re.findall(r"^\| [\w:-]+ \|", table, re.MULTILINE))


def test_paper_has_short_names_and_notes(tmp_path: Path) -> None:
    label = "step_reuse on a fixed schedule: 11 of 28 steps computed"
    records = [
        run.model_copy(update={"preset": "fast", "labels": (label,)}) if run.preset == "classic" else run
        for run in gpu_result().records
    ]
    text = written(stored(tmp_path / "labels", result(records)), "paper")
    names = [line.split("&")[0].strip() for line in text.splitlines() if line.count("&") == 5]
    assert "fast" in names
    assert max(map(len, names)) < 30
    assert text.count("fast: step\\_reuse on a fixed schedule: 11 of 28 steps computed.") == 1


def test_timeline_is_drawn_to_scale(h200: Path) -> None:
    text = written(h200, "business", "--development-usd", "6000", "--upkeep-usd", "100")
    rows = re.findall(r"^\| \d+ months? \| (-?)\$([\d,]+).*\| ([█▒]*) \|$", text, re.MULTILINE)
    assert len(rows) == 6
    gained = [float(usd.replace(",", "")) for _, usd, _ in rows]
    for (sign, _, bar), usd in zip(rows, gained, strict=True):
        assert set(bar) <= {"▒" if sign else "█"}
        assert abs(len(bar) - 30 * usd / max(gained)) <= 0.51


def test_timeline_payback_equals_the_command(h200: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--development-usd", "6000", "--upkeep-usd", "100")
    preset = priced(h200, capsys, *options)["classic"]
    saved, payback = preset["saved_usd_per_month"], preset["payback"]
    assert isinstance(saved, dict)
    assert isinstance(payback, dict)
    text = written(h200, "business", *options)
    assert f"**{payback['months']:.1f} months**" in text
    assert f"after a year is {100 * payback['first_year_return']:.0f} %" in text
    gained = {int(n): usd for n, usd in re.findall(r"\| (\d+) months? \| (-?\$[\d,]+)", text)}
    assert list(gained) == [1, 2, 3, 6, 9, 12]
    for months, usd in gained.items():
        dollars = months * (saved["value"] - 100) - 6000
        assert usd == f"{'-' if dollars < 0 else ''}${abs(dollars):,.0f}"
    assert gained[1].startswith("-")
    assert not gained[12].startswith("-")


def test_case_without_development_names_affordable_cost(h200: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = priced(h200, capsys)["classic"]["saved_usd_per_month"]
    assert isinstance(saved, dict)
    assert f"up to ${12 * saved['value']:,.0f} pays back within twelve months" in written(h200, "business")


def test_business_case_needs_a_faster_preset(tmp_path: Path) -> None:
    slow = [gpu_run("baseline", r, order=r) for r in range(3)]
    assert "nothing to buy" in written(stored(tmp_path / "slow", result(slow)), "business")


def test_report_command_refuses_price_of_another_card(h200: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(h200), "--price", "lambda-h100-pcie"]) == 2
    assert "choose a price of the card that was measured" in capsys.readouterr().err


def test_business_case_compares_with_apis(h200: Path) -> None:
    text = written(h200, "business", "--images-per-day", "2000")
    for price in load_prices().apis():
        assert price.usd_per_image is not None
        row = next(line for line in text.splitlines() if price.id in line and line.startswith("| bought"))
        assert f"| ${2000 * price.usd_per_image * 365 / 12:,.0f} |" in row


def test_documents_list_many_workloads_in_one_table(tmp_path: Path) -> None:
    folder = stored(tmp_path / "sweep", sweep())
    blog, paper = written(folder, "blog"), written(folder, "paper")
    assert len(re.findall(r"(?:^\|.*\n)+", blog, flags=re.MULTILINE)) == 1
    assert blog.count("- energy\n") == 1
    assert blog.index("speedup_comparison.png") < blog.index("resolution_scaling.png")
    assert paper.count(r"\begin{table}") == 2
    for size in ("512x512", "768x768", "1024x1024"):
        assert f"edit, {size}, 10 steps & fast &" in paper


@needs.pdflatex
def test_the_paper_compiles(tmp_path: Path) -> None:
    evil = gpu_run("compile", 9, order=99).model_copy(
        update={"preset": r"50_% of {it} & \more $ #1 ~ ^", "run_id": "e"}
    )
    for name, records in (("evil", result([*gpu_result().records, evil])), ("sweep", sweep())):
        paper = written(stored(tmp_path / name, records), "paper")
        main = rf"\documentclass{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}{paper}\end{{document}}"
        (tmp_path / f"{name}.tex").write_text(main, encoding="utf-8")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]


def test_documents_show_both_times_of_two_processes(tmp_path: Path) -> None:
    runs = [run for run in gpu_result().records if run.preset != "compile" or run.round < 2]
    folder = stored(tmp_path / "two", result(runs))
    blog, paper = (written(folder, audience) for audience in ("blog", "paper"))
    assert "| compile | 2 runs: 6.00, 6.12 s | 1.67x (no interval) |" in blog
    assert "compile & 2 runs: 6.00, 6.12 s & 1.67x &" in paper
