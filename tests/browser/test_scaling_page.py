"""The page of times over sizes, on a phone and in the dark scheme."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from kontext_fast.report.charts.benchmark import resolution_scaling
from tests.browser.chromium import look
from tests.report import suite_records
from tests.report.reports import report_of


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    html = resolution_scaling.draw(report_of(suite_records.sweep())).html
    assert html is not None
    path = tmp_path_factory.mktemp("scaling") / "resolution_scaling.html"
    path.write_text(html, encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_scaling_page_fits_and_its_letters_can_be_read(driver: webdriver.Chrome, page: Path, width: int) -> None:
    look(driver, page, width=width)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    texts = driver.find_elements(By.CSS_SELECTOR, "svg text")
    assert len(texts) > 6
    heights = [driver.execute_script("return arguments[0].getBoundingClientRect().height", text) for text in texts]
    assert min(heights) >= 12
    assert driver.get_log("browser") == []


def test_scaling_page_is_dark_in_the_dark_scheme(driver: webdriver.Chrome, page: Path) -> None:
    """And its lines are seen in both: gray is baseline, blue is ours."""

    def colors(dark: bool) -> list[list[int]]:
        look(driver, page, dark=dark)
        shown = [driver.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")]
        lines = driver.find_elements(By.CSS_SELECTOR, "svg polyline")
        shown += [line.value_of_css_property("stroke") for line in lines]
        return [[int(part) for part in color.strip("rgba()").split(",")[:3]] for color in shown]

    light, dark = colors(False), colors(True)
    assert light == [[255, 255, 255], [138, 143, 152], [0, 114, 178]]
    assert sum(dark[0]) < 150
    assert dark[1:] == [[139, 147, 158], [86, 180, 233]]
