from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cost.conftest import Kontext
from tests.cost.gpu_records import gpu_result, stored
from tests.records.builder import result, timed

OLD = """
[[price]]
id = "old"
provider = "me"
product = "my machine"
region = "cellar"
card = "H200"
memory_gib = 140
kind = "on-demand"
usd_per_hour = 2.0
source = "my bill"
day = 2020-01-01
"""


@pytest.fixture
def h200(tmp_path: Path) -> Path:
    return stored(tmp_path / "h200", gpu_result())


def answer(out: str) -> dict[str, Any]:
    found = json.loads(out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_records_of_a_gpu_are_priced(kontext: Kontext, h200: Path) -> None:
    outcome = kontext("cost", h200, "--price", "2.0", "--images-per-day", 3600, "--cold-starts", 0, "--json")
    assert outcome.code == 0
    (group,) = answer(outcome.out)["groups"]
    assert (group["card"], group["price"]["id"]) == ("H200", "user")
    found = {preset["preset"]: preset for preset in group["presets"]}
    assert found["baseline"]["usd_per_day"]["value"] == pytest.approx(2.0 * 10.2)
    assert found["classic"]["saved_usd_per_month"]["value"] == pytest.approx(2.0 * 6.12 * 365 / 12)
    assert found["classic"]["run_ids"] == ["classic-0", "classic-1", "classic-2"]
    assert "by-use, user" in found["classic"]["basis"]


def test_two_named_times_are_priced_without_records(kontext: Kontext) -> None:
    outcome = kontext("cost", "--seconds", 36, "--against", 18, "--price", 2, "--images-per-day", 1000, "--json")
    assert outcome.code == 0
    saved = answer(outcome.out)
    assert saved["usd_per_image"] == pytest.approx([0.02, 0.01])
    assert saved["usd_per_month_saved"] == pytest.approx(0.01 * 1000 * 365 / 12)
    assert "by-use" in saved["basis"]
    assert "a month saved (50 %)" in outcome.out


def test_cost_table_names_billing_price_day_and_runs(kontext: Kontext, h200: Path) -> None:
    out = kontext("cost", h200, "--verbose").out
    assert "Billed by-use at " in out
    assert "2026-10-01" in out
    assert "time of classic-0, classic-1, classic-2" in out
    assert "repays its longer start after: 33 images" in out
    assert "bfl-kontext-pro" in out


def test_load_time_of_random_weights_is_said_to_be_missing(kontext: Kontext, h200: Path) -> None:
    """They are drawn on the GPU in no time; real ones take what is given with --load-seconds."""
    options = ("cost", h200, "--price", "3600", "--images-per-day", "1", "--cold-starts", "1")
    words = "without loading, since random weights are not read from disk (--load-seconds)"
    assert words in " ".join(kontext(*options).out.split())
    assert words not in " ".join(kontext(*options, "--load-seconds", "30").out.split())

    def usd_per_day(*more: object) -> float:
        (group,) = answer(kontext(*options, *more, "--json").out)["groups"]
        (value,) = (one["usd_per_day"]["value"] for one in group["presets"] if one["preset"] == "baseline")
        return float(value)

    assert usd_per_day("--load-seconds", "30") - usd_per_day() == pytest.approx(30.0)


@pytest.mark.parametrize("columns", [80, 120])
def test_every_priced_row_shows_dollars_in_80_columns(
    kontext: Kontext, h200: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = kontext("cost", h200, "--price", "2").out.splitlines()
    names = ("baseline", "compile", "classic")
    rows = {name: next(line for line in lines if line.startswith(f"{name} ")) for name in names}
    assert [row.count("$") for row in rows.values()] == [2, 3, 3]
    assert max(map(len, lines)) <= columns
    assert any(line.startswith("classic costs least: $") for line in lines)


def test_several_folders_are_priced_as_one(kontext: Kontext, h200: Path, tmp_path: Path) -> None:
    other = stored(tmp_path / "other", result([timed("faithful", 0, [1.0, 1.0])]))
    outcome = kontext("cost", h200, other, h200, "--json")
    presets = [{preset["preset"] for preset in group["presets"]} for group in answer(outcome.out)["groups"]]
    assert presets == [{"baseline", "compile", "classic"}, {"faithful"}]


def test_cost_command_states_the_licence(kontext: Kontext, h200: Path) -> None:
    outcome = kontext("cost", h200, "--json")
    assert "non-commercial use by default" in outcome.out.splitlines()[-2]
    assert "non-commercial" in answer(outcome.out)["licence"][0]


def test_a_cpu_has_no_price(kontext: Kontext, tmp_path: Path) -> None:
    folder = stored(tmp_path / "cpu", result([timed("baseline", 0, [1.0, 1.0])]))
    outcome = kontext("cost", folder, "--json")
    assert outcome.code == 0
    assert "no price for this machine" in outcome.out
    assert answer(outcome.out)["groups"][0]["refusal"] == "no price for this machine"


def test_cost_command_refuses_price_of_another_card(kontext: Kontext, h200: Path) -> None:
    outcome = kontext("cost", h200, "--price", "lambda-h100-pcie")
    assert (outcome.code, outcome.out) == (2, "")
    assert "H100 PCIe" in outcome.err
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("--price", "no-such-price"),
        ("--price", "-3"),
        ("--images-per-day", 0),
        ("--peak-share", 2),
        ("--billing", "for-free"),
        ("--development-usd", 0),
        ("--prices", "none.toml"),
        ("--csv", "/proc/none/costs.csv"),
        ("--billing", "reserved", "--price", "runpod-secure-h200"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(kontext: Kontext, h200: Path, arguments: tuple[object, ...]) -> None:
    outcome = kontext("cost", h200, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1


def test_missing_records_are_bad_input(kontext: Kontext) -> None:
    assert kontext("cost", "nowhere").code == 2


def test_old_price_is_stamped_stale(kontext: Kontext, h200: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(OLD, encoding="utf-8")
    outcome = kontext("cost", h200, "--prices", own, "--json", "-v")
    assert "This price is stale" in outcome.out
    assert "old 2020-01-01 (stale)" in outcome.out
    assert answer(outcome.out)["groups"][0]["price"]["stale"] is True
    assert "This price is stale" not in kontext("cost", h200, "--price", "2").out


def test_cost_command_prints_payback_or_never(kontext: Kontext, h200: Path) -> None:
    paid = kontext("cost", h200, "--price", "2", "--development-usd", 6000, "--json")
    assert "pays the development back after: " in paid.out
    never = kontext("cost", h200, "--price", "2", "--development-usd", 6000, "--upkeep-usd", 1e6, "--json")
    assert "pays the development back after: never" in never.out
    presets = {preset["preset"]: preset for preset in answer(never.out)["groups"][0]["presets"]}
    assert presets["classic"]["payback"]["months"] == "never"
    assert presets["baseline"]["payback"] is None


def test_billing_models_need_different_fleets(kontext: Kontext, h200: Path) -> None:
    outcome = kontext("cost", h200, "--billing", "always-on", "--peak-share", 0.4, "--price", "2", "--json")
    gpus = {preset["preset"]: preset["gpus"] for preset in answer(outcome.out)["groups"][0]["presets"]}
    assert gpus == {"baseline": 17, "compile": 10, "classic": 7}


def test_the_csv_has_a_line_per_preset(kontext: Kontext, h200: Path, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "costs.csv"
    outcome = kontext("cost", h200, "--price", "2", "--csv", path, "--json")
    assert outcome.code == 0
    with path.open(encoding="utf-8", newline="") as file:
        lines = {line["preset"]: line for line in csv.DictReader(file)}
    found = {preset["preset"]: preset for preset in answer(outcome.out)["groups"][0]["presets"]}
    assert lines.keys() == found.keys()
    for name, line in lines.items():
        assert float(line["usd_per_month"]) == found[name]["usd_per_month"]["value"]
        assert float(line["usd_per_month_low"]) == found[name]["usd_per_month"]["interval"][0]
        assert line["run_ids"] == " ".join(found[name]["run_ids"])
        assert line["price"] == "user"


def test_costs_need_neither_torch_nor_matplotlib(h200: Path) -> None:
    script = (
        "import sys; from kontext_fast.cli.main import run; code = run(sys.argv[1:]);"
        "loaded = {'torch', 'matplotlib'} & sys.modules.keys(); print(code, sorted(loaded), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, "cost", str(h200)], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0 []"
