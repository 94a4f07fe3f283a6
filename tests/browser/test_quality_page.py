"""The page of a verification in a real browser: nothing leaves it, it fits a phone, two pictures can be compared."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

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
    slider = driver.find_element(By.CSS_SELECTOR, ".card:not([hidden]) .slider")
    over, handle = (slider.find_element(By.CSS_SELECTOR, name) for name in (".over", "input"))
    assert over.value_of_css_property("clip-path") == "inset(0px 0px 0px 50%)"
    driver.execute_script("arguments[0].focus()", handle)
    handle.send_keys(Keys.HOME)
    assert over.value_of_css_property("clip-path") == "inset(0px 0px 0px 0%)"
    handle.send_keys(Keys.ARROW_RIGHT * 3)
    assert over.value_of_css_property("clip-path") == "inset(0px 0px 0px 3%)"


def test_pickers_choose_and_order_the_images(driver: webdriver.Chrome, page: Path) -> None:
    look(driver, page)

    def shown(name: str) -> list[str]:
        cards = driver.find_elements(By.CSS_SELECTOR, ".card:not([hidden])")
        return [card.get_attribute(f"data-{name}") or "" for card in cards]

    form = driver.find_element(By.ID, "pick")
    assert set(shown("preset")) == {"turbo"}
    assert set(shown("choice")) == {"worst"}
    Select(form.find_element(By.NAME, "preset")).select_by_visible_text("faithful")
    Select(form.find_element(By.NAME, "choice")).select_by_value("random")
    assert set(shown("preset")) == {"faithful"}
    assert set(shown("choice")) == {"random"}
    Select(form.find_element(By.NAME, "preset")).select_by_visible_text("turbo")
    order = Select(form.find_element(By.NAME, "order"))
    order.select_by_index(len(order.options) - 1)
    scores = shown(f"score-{order.first_selected_option.get_attribute('value')}")
    losses = [float(score) for score in scores if score]
    assert len(losses) > 1
    assert losses == sorted(losses, reverse=True)


def test_arrow_keys_go_from_picture_to_picture(driver: webdriver.Chrome, page: Path) -> None:
    look(driver, page)
    first, second, *_ = driver.find_elements(By.CSS_SELECTOR, ".card:not([hidden]) .slider input")
    first.send_keys(Keys.ARROW_DOWN)
    assert driver.switch_to.active_element == second
    second.send_keys(Keys.ARROW_UP)
    assert driver.switch_to.active_element == first


def test_matrix_has_a_cell_per_preset_and_metric(driver: webdriver.Chrome, page: Path) -> None:
    look(driver, page)
    table = driver.find_element(By.CSS_SELECTOR, "table.matrix")
    columns = len(table.find_elements(By.CSS_SELECTOR, "thead th"))
    rows = {row.text.split()[0]: row for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")}
    assert rows.keys() == {"faithful", "turbo"}
    assert all(len(row.find_elements(By.XPATH, "./*")) == columns > 2 for row in rows.values())
    assert rows["turbo"].find_elements(By.CSS_SELECTOR, "td.no")


@pytest.mark.parametrize("dark", [False, True])
def test_quality_page_is_accessible(driver: webdriver.Chrome, page: Path, dark: bool) -> None:
    look(driver, page, dark=dark)
    driver.execute_script(AXE.read_text())
    found = driver.execute_async_script(
        "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa']}).then(result => arguments[0](result.violations))"
    )
    assert [(one["id"], [node["html"][:120] for node in one["nodes"][:3]]) for one in found] == []
