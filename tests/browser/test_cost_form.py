"""The cost form of the page in a real browser: its figures are those of `kontext cost`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

from kontext_fast.analysis.format import usd
from kontext_fast.cli.main import run
from tests.browser.chromium import look, open_everything

MONEY = ("usd_per_image", "usd_per_day", "usd_per_month", "saved_usd_per_month")


def fill(driver: webdriver.Chrome, **inputs: str) -> None:
    """Type or choose as a reader would; `usd` is the typed price."""
    if "usd" in inputs:
        inputs = inputs | {"price": "typed"}
    for name in ("group", "billing", "price", "usd", "images_per_day", "peak_percent", "cold_starts"):
        if name not in inputs:
            continue
        field = driver.find_element(By.NAME, name)
        if field.tag_name == "select":
            Select(field).select_by_value(inputs[name])
        else:
            field.clear()
            field.send_keys(inputs[name])


def shown(driver: webdriver.Chrome) -> dict[str, list[list[tuple[str, float, str]]]]:
    """Of every priced preset the cells of money and GPUs, as (text, value, note)."""
    script = """
        return [...document.querySelectorAll('#cost-rows tr')].map((row) => [
          row.querySelector('th').firstChild.textContent,
          [...row.querySelectorAll('data')].map((shown) => [
            shown.textContent, Number(shown.value), shown.nextSibling.textContent]),
        ]);
    """
    return {name: [tuple(cell) for cell in cells] for name, cells in driver.execute_script(script)}


def priced(records: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    """What the command says of the same question, one answer per workload."""
    assert run(["cost", str(records), *options, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    return {group["workload"]: {p["preset"]: p for p in group["presets"]} for group in answer["groups"]}


def assert_same(on_page: dict[str, Any], of_command: dict[str, Any], billing: str = "by-use") -> None:
    assert set(on_page) == {name for name, preset in of_command.items() if preset["usd_per_day"]}
    for name, cells in on_page.items():
        preset = of_command[name]
        wanted = [preset[key] for key in MONEY if preset[key]]
        assert len(cells) == len(wanted) + 1
        for (text, value, note), estimate in zip(cells, wanted, strict=False):
            assert value == pytest.approx(estimate["value"], rel=1e-9)
            assert text == usd(estimate["value"])
            assert note == (" to ".join(map(usd, estimate["interval"])) if estimate["interval"] else "no interval")
        text, value, note = cells[-1]
        assert value == preset["gpus"]
        used = f"{100 * preset['utilization']:.0f} % used"
        assert note == ("at the peak" if billing == "by-use" else used)


LARGE, SMALL = "edit, 1024x1024, 28 steps", "edit, 512x512, 28 steps"

CASES: list[tuple[dict[str, str], list[str], str]] = [
    ({}, [], LARGE),
    ({"images_per_day": "25000"}, ["--images-per-day", "25000"], LARGE),
    ({"images_per_day": "333.25", "cold_starts": "40"}, ["--images-per-day", "333.25", "--cold-starts", "40"], LARGE),
    ({"price": "runpod-secure-h200"}, ["--price", "runpod-secure-h200"], LARGE),
    ({"usd": "2.28"}, ["--price", "2.28"], LARGE),
    ({"billing": "always-on"}, ["--billing", "always-on"], LARGE),
    (
        {"billing": "always-on", "price": "gcp-a3-ultragpu-8g", "images_per_day": "90000"},
        ["--billing", "always-on", "--price", "gcp-a3-ultragpu-8g", "--images-per-day", "90000"],
        LARGE,
    ),
    (
        {"billing": "always-on", "peak_percent": "12.5", "usd": "3"},
        ["--billing", "always-on", "--peak-share", "0.125", "--price", "3"],
        LARGE,
    ),
    ({"billing": "reserved"}, ["--billing", "reserved"], LARGE),
    ({"billing": "reserved", "usd": "1.99"}, ["--billing", "reserved", "--price", "1.99"], LARGE),
    ({"group": "1", "images_per_day": "1000000"}, ["--images-per-day", "1000000"], SMALL),
    ({"group": "1", "usd": "0.001"}, ["--price", "0.001"], SMALL),
]


@pytest.mark.parametrize(("inputs", "options", "workload"), CASES, ids=[" ".join(map(str, c[1])) or "-" for c in CASES])
def test_form_figures_follow_inputs_and_equal_the_command(
    driver: webdriver.Chrome,
    h200: Path,
    h200_page: Path,
    capsys: pytest.CaptureFixture[str],
    inputs: dict[str, str],
    options: list[str],
    workload: str,
) -> None:
    look(driver, h200_page)
    at_first = shown(driver)
    fill(driver, **inputs)
    assert (shown(driver) == at_first) == (not inputs)
    assert_same(shown(driver), priced(h200, capsys, *options)[workload], inputs.get("billing", "by-use"))


def test_headline_and_form_show_the_same_savings(driver: webdriver.Chrome, h200_page: Path) -> None:
    look(driver, h200_page)
    table = driver.find_element(By.CSS_SELECTOR, "#results table").text
    for preset in ("compile", "classic"):
        text, _, note = shown(driver)[preset][3]
        assert text in table
        assert note in table


def test_form_prices_a_cpu_only_with_typed_price(
    driver: webdriver.Chrome, cpu: Path, cpu_page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    look(driver, cpu_page)
    open_everything(driver)
    assert "no price for this machine" in driver.find_element(By.ID, "cost-basis").text
    assert not any(shown(driver).values())
    fill(driver, usd="0.19", images_per_day="500")
    of_command = priced(cpu, capsys, "--price", "0.19", "--images-per-day", "500")["edit, 128x128, 4 steps"]
    assert_same({name: cells for name, cells in shown(driver).items() if cells}, of_command)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"images_per_day": "0"}, "Images a day"),
        ({"images_per_day": ""}, "Images a day"),
        ({"usd": "-1"}, "price"),
        ({"peak_percent": "3"}, "busiest hour"),
        ({"peak_percent": "101"}, "busiest hour"),
        ({"cold_starts": "-1"}, "Cold starts"),
        ({"billing": "reserved", "usd": ""}, "Type dollars per GPU-hour"),
    ],
)
def test_form_without_price_shows_reason_and_no_figures(
    driver: webdriver.Chrome, h200_page: Path, inputs: dict[str, str], words: str
) -> None:
    look(driver, h200_page)
    fill(driver, **inputs)
    assert words in driver.find_element(By.ID, "cost-basis").text
    assert not any(shown(driver).values())


def test_form_names_price_with_day_and_source(driver: webdriver.Chrome, h200_page: Path) -> None:
    look(driver, h200_page)
    fill(driver, price="runpod-secure-h200")
    words = driver.find_element(By.ID, "cost-basis").text
    assert "runpod-secure-h200, 20" in words
    assert "gpurentalprices.com" in words
    fill(driver, usd="2.28")
    assert "typed on this page" in driver.find_element(By.ID, "cost-basis").text
