"""The page of a verification in a real browser: nothing leaves it, it fits a phone, two pictures can be compared."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from kontext_fast.report.output.quality_page import write_quality_page
from tests.browser.chromium import look, requested
from tests.browser.test_page import AXE, WIDTHS
from tests.verify.synthetic_results import losing, untouched, verification


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = verification(
        tmp_path_factory.mktemp("quality"),
        {"faithful": untouched, "turbo": losing(2)},
        items=8,
        control_items=8,
        fewer={"14 steps": losing(3)},
        edits_s={"baseline": (2.0, 2.1), "re-run": (2.0,), "faithful": (1.0,), "turbo": (0.5, 0.6), "14 steps": (1.0,)},
    )
    return write_quality_page(store.folder)


def test_no_request_leaves_the_page(driver: webdriver.Chrome, page: Path) -> None:
    look(driver, page)
    addresses = requested(driver)
    assert page.as_uri() in addresses
    assert all(address == page.as_uri() or address.startswith("data:image/") for address in addresses)
    assert driver.get_log("browser") == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_the_screen(driver: webdriver.Chrome, page: Path, width: int) -> None:
    look(driver, page, width=width)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width


def test_quality_slider_uncovers_the_picture(driver: webdriver.Chrome, page: Path) -> None:
    look(driver, page)
    slider = driver.find_element(By.CSS_SELECTOR, ".slider")
    over, handle = (slider.find_element(By.CSS_SELECTOR, name) for name in (".over", "input"))
    assert over.value_of_css_property("clip-path") == "inset(0px 0px 0px 50%)"
    driver.execute_script("arguments[0].focus()", handle)
    handle.send_keys(Keys.HOME)
    assert over.value_of_css_property("clip-path") == "inset(0px 0px 0px 0%)"
    handle.send_keys(Keys.ARROW_RIGHT * 3)
    assert over.value_of_css_property("clip-path") == "inset(0px 0px 0px 3%)"


@pytest.mark.parametrize("dark", [False, True])
def test_quality_page_is_accessible(driver: webdriver.Chrome, page: Path, dark: bool) -> None:
    look(driver, page, dark=dark)
    driver.execute_script(AXE.read_text())
    found = driver.execute_async_script(
        "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa']}).then(result => arguments[0](result.violations))"
    )
    assert [(one["id"], [node["html"][:120] for node in one["nodes"][:3]]) for one in found] == []
