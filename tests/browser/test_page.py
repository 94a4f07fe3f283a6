"""The whole page in a real browser: it asks for nothing, fits the screen, and can be used by everybody."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from tests.browser.chromium import look, open_everything, requested

AXE = Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js"
PUBLISHED = Path(__file__).parents[2] / "reports" / "index.html"
WIDTHS = (360, 390, 1280)


@pytest.fixture(params=["h200_page", "cpu_page"])
def page(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def widths(driver: webdriver.Chrome, region: WebElement) -> tuple[int, int]:
    """Of what a region holds, and of what is seen of it without scrolling sideways."""
    inside, seen = driver.execute_script("return [arguments[0].scrollWidth, arguments[0].clientWidth]", region)
    return inside, seen


def test_no_request_leaves_the_page(driver: webdriver.Chrome, page: Path) -> None:
    look(driver, page)
    open_everything(driver)
    for field in driver.find_elements(By.CSS_SELECTOR, "#cost-form input:not([name=usd])"):
        if field.is_displayed():
            field.clear()
            field.send_keys("7")
    addresses = requested(driver)
    assert page.as_uri() in addresses
    assert all(address == page.as_uri() or address.startswith("data:image/") for address in addresses)
    assert driver.get_log("browser") == []


def test_page_policy_forbids_added_scripts(driver: webdriver.Chrome, page: Path) -> None:
    """Its policy stops a script that was added and a request that such a script would make."""
    look(driver, page)
    driver.execute_script(
        "const added = document.createElement('script'); added.textContent = 'window.added = true';"
        "document.body.append(added); new Image().src = 'http://127.0.0.1:9/pixel.png';"
    )
    assert driver.execute_script("return window.added") is None
    refused = " ".join(entry["message"] for entry in driver.get_log("browser"))
    assert "script-src" in refused
    assert "img-src" in refused


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_the_screen(driver: webdriver.Chrome, page: Path, width: int) -> None:
    look(driver, page, width=width)
    open_everything(driver)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    sticking_out = """
        const inside = (element) => element.closest('.scroll, .strip, nav') !== null;
        return [...document.querySelectorAll('main *')].filter((element) => !inside(element)
          && element.getBoundingClientRect().right > innerWidth + 0.5).map((element) => element.outerHTML.slice(0, 80));
    """
    assert driver.execute_script(sticking_out) == []


def test_phone_shows_presets_with_seconds_and_factors(driver: webdriver.Chrome, h200_page: Path) -> None:
    """The table of the first screen needs no scrolling; the long ones have their names and times in view."""
    look(driver, h200_page, width=390)
    card = driver.find_element(By.CSS_SELECTOR, "#use table")
    inside, seen = widths(driver, card)
    assert inside <= seen
    assert "classic" in card.text
    assert "2.500x" in card.text
    for region in driver.find_elements(By.CSS_SELECTOR, "#results > .scroll, #cost > .scroll"):
        for cell in region.find_elements(By.CSS_SELECTOR, "thead th")[:2]:
            assert cell.rect["x"] + cell.rect["width"] <= 390


@pytest.mark.parametrize("title", ["Results by the work that is done", "Where the time goes"])
def test_published_tables_show_every_column_on_a_desktop(driver: webdriver.Chrome, title: str) -> None:
    """However many processes a preset has had: the last column is what a month costs, or the steps computed."""
    look(driver, PUBLISHED, width=1280)
    open_everything(driver)
    table = driver.find_element(By.CSS_SELECTOR, f'.scroll[aria-label="{title}: edit, 1024x1024, 28 steps"]')
    inside, seen = widths(driver, table)
    assert 0 < inside <= seen


def test_published_page_is_under_15_screens_and_1500_kb(driver: webdriver.Chrome) -> None:
    """Before anything is opened, on a screen of 1280 x 900; the size is that without pictures."""
    look(driver, PUBLISHED, width=1280)
    assert driver.execute_script("return document.documentElement.scrollHeight") < 15 * 900
    words = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", PUBLISHED.read_text(encoding="utf-8"))
    assert len(words.encode()) < 1_500_000


@pytest.mark.parametrize("width", [390, 1280])
def test_published_page_answers_on_its_first_screen(driver: webdriver.Chrome, width: int) -> None:
    """Four answers within the first 900 pixels, and on a desktop the main chart and what to type beside them."""
    look(driver, PUBLISHED, width=width)
    answers = driver.find_elements(By.CSS_SELECTOR, ".answers > div")
    assert [answer.text.split("\n")[0] for answer in answers] == [
        "How fast?", "Are the images as good?", "What does it save?", "How do I use it?",
    ]  # fmt: skip
    parts = [*answers, *(driver.find_elements(By.CSS_SELECTOR, "header figure svg, #use pre") if width > 1000 else ())]
    shown = [part for part in parts if part.is_displayed()]
    assert len(shown) == (7 if width > 1000 else 4)
    assert all(part.rect["y"] + part.rect["height"] <= 900 for part in shown)


def test_phone_shows_factors_of_the_tiers(driver: webdriver.Chrome) -> None:
    look(driver, PUBLISHED, width=390)
    inside, seen = widths(driver, driver.find_element(By.CSS_SELECTOR, "#results > .scroll"))
    assert inside <= seen


def test_other_recipes_are_closed_until_asked_for(driver: webdriver.Chrome) -> None:
    look(driver, PUBLISHED)

    def names(rows: str) -> list[str]:
        return [cell.text for cell in driver.find_elements(By.CSS_SELECTOR, f"{rows} th") if cell.is_displayed()]

    at_first = names("#cost-rows tr")
    assert len(at_first) <= 12
    assert {"baseline", "turbo", "peer:steps-8"} <= set(at_first)
    assert "peer:magcache" not in at_first
    driver.execute_script("document.querySelector('#cost-form [name=all]').click()")
    assert {"peer:magcache", *at_first} <= set(names("#cost-rows tr"))
    serving = "#serving tbody tr"
    assert "magcache" not in names(serving)
    open_everything(driver)
    assert "magcache" in names(serving)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious(driver: webdriver.Chrome, page: Path, width: int, dark: bool) -> None:
    look(driver, page, width=width, dark=dark)
    open_everything(driver)
    driver.execute_script(AXE.read_text(encoding="utf-8"))
    found = driver.execute_async_script("axe.run(document).then(arguments[0], (error) => arguments[0](String(error)))")
    assert len(found["passes"]) > 10
    serious = [
        (violation["id"], violation["nodes"][0]["html"], violation["nodes"][0]["failureSummary"])
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_dark_scheme_is_dark(driver: webdriver.Chrome, h200_page: Path) -> None:
    def brightness(dark: bool) -> int:
        look(driver, h200_page, dark=dark)
        colour = driver.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
        return sum(int(part) for part in colour.strip("rgba()").split(",")[:3])

    assert brightness(dark=True) < 150 < 600 < brightness(dark=False)


def test_every_link_of_the_page_has_a_target(driver: webdriver.Chrome, page: Path) -> None:
    look(driver, page)
    nowhere = (
        "return [...document.querySelectorAll('a[href^=\"#\"]')].map((link) => link.getAttribute('href'))"
        ".filter((target) => !document.getElementById(target.slice(1)))"
    )
    assert driver.execute_script(nowhere) == []


def test_runs_of_a_row_lead_to_their_records(driver: webdriver.Chrome, h200_page: Path) -> None:
    look(driver, h200_page)
    link = driver.find_element(By.CSS_SELECTOR, "#results a[data-runs]")
    driver.execute_script("arguments[0].click()", link)
    shown = driver.find_elements(By.CSS_SELECTOR, "#records tr.found")
    assert len(shown) == 3
    assert all(row.is_displayed() and "baseline" in row.text for row in shown)


def test_tables_sort_by_value_and_filter(driver: webdriver.Chrome, h200_page: Path) -> None:
    look(driver, h200_page)
    open_everything(driver)
    table = driver.find_element(By.CSS_SELECTOR, '.scroll[aria-label="Results: edit, 1024x1024, 28 steps"] table')

    def names() -> list[str]:
        return [cell.text.split("\n")[0] for cell in table.find_elements(By.CSS_SELECTOR, "tbody th")]

    head = table.find_elements(By.CSS_SELECTOR, "thead th")[1]
    for order, ascending in (("ascending", ["classic", "compile", "baseline"]), ("descending", ["baseline"])):
        driver.execute_script("arguments[0].click()", head.find_element(By.TAG_NAME, "button"))
        assert head.get_attribute("aria-sort") == order
        assert names()[: len(ascending)] == ascending
    records = driver.find_element(By.CSS_SELECTOR, "#records")
    Select(records.find_element(By.CSS_SELECTOR, ".filters select")).select_by_visible_text("compile")
    rows = [row for row in records.find_elements(By.CSS_SELECTOR, "tbody tr") if row.is_displayed()]
    assert rows
    assert all("compile" in row.text for row in rows)


def test_chart_says_what_is_pointed_at(driver: webdriver.Chrome, h200_page: Path) -> None:
    look(driver, h200_page)
    part = driver.find_element(By.CSS_SELECTOR, "svg.wide .tip")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", part)
    words = driver.find_element(By.ID, "tip")

    def pointed_at(driver: webdriver.Chrome) -> bool:
        ActionChains(driver).move_by_offset(1, 0).move_to_element(part).perform()
        return bool(words.is_displayed())

    # Scrolling hides what was said, and on a busy machine it ends late.
    WebDriverWait(driver, 10).until(pointed_at)
    assert words.text == part.get_attribute("data-words")


def test_charts_follow_the_dark_scheme(driver: webdriver.Chrome, h200_page: Path) -> None:
    def ink(dark: bool) -> str:
        look(driver, h200_page, dark=dark)
        return driver.find_element(By.CSS_SELECTOR, "svg.wide text").value_of_css_property("fill")

    assert ink(dark=True) != ink(dark=False)


def test_slider_uncovers_the_chosen_preset(driver: webdriver.Chrome, h200_page: Path) -> None:
    look(driver, h200_page)
    compare = driver.find_element(By.CSS_SELECTOR, ".compare")
    slider = compare.find_element(By.CSS_SELECTOR, "input[type=range]")
    over = compare.find_element(By.CSS_SELECTOR, "img.over")
    slider.send_keys(webdriver.Keys.END)
    assert "100%" in over.value_of_css_property("clip-path")
    slider.send_keys(webdriver.Keys.HOME)
    assert "100%" not in over.value_of_css_property("clip-path")
    Select(compare.find_element(By.TAG_NAME, "select")).select_by_visible_text("classic")
    item = driver.find_element(By.CSS_SELECTOR, ".item")
    chosen = item.find_element(By.CSS_SELECTOR, "img[data-preset=classic]")
    assert over.get_attribute("src") == chosen.get_attribute("src")


def test_published_page_is_short_light_and_whole(driver: webdriver.Chrome) -> None:
    """Under 15 screens before anything is opened, and 1.5 MB without its pictures."""
    look(driver, PUBLISHED, width=1280)
    assert driver.execute_script("return document.documentElement.scrollHeight") < 15 * 1000
    text = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", PUBLISHED.read_text(encoding="utf-8"))
    assert len(text) < 1_500_000
