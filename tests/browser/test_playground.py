"""The playground in a real browser, on a server that really edits: everything that a person does there."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from kontext_fast.datasets.shapes import held_out
from tests.browser.chromium import look, open_everything, requested
from tests.browser.test_page import AXE
from tests.server.processes import RunningServer, server, until

PHONE, DESKTOP = 390, 1280
SHOTS = os.environ.get("KONTEXT_SCREENSHOTS")
"""Folder for pictures of the page, for whoever wants to look at them."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    with server(folder, "--max-steps", "40", preset="baseline,fuse_qkv", steps=6) as started:
        yield started


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    held_out(1)[0].render(128).save(path)
    return path


class Playground:
    """The page as a person sees it."""

    def __init__(self, driver: webdriver.Chrome, url: str, *, width: int, dark: bool = False) -> None:
        self.driver = driver
        look(driver, f"{url}/", width=width, dark=dark)
        until(lambda: self.the("run").is_enabled())

    def the(self, identity: str) -> WebElement:
        return self.driver.find_element(By.ID, identity)

    def text(self, identity: str) -> str:
        return str(self.the(identity).text)

    def type(self, identity: str, text: str) -> None:
        self.the(identity).clear()
        self.the(identity).send_keys(text)

    def edit(self, photo: Path | None, prompt: str = "make the background red") -> None:
        if photo is not None:
            self.the("file").send_keys(str(photo))
        self.type("prompt", prompt)
        self.the("run").click()

    def is_done(self) -> bool:
        return self.text("status").startswith("Done in")

    def shoot(self, name: str) -> None:
        if SHOTS is not None:
            height = self.driver.execute_script("return document.documentElement.scrollHeight")
            clip = {"x": 0, "y": 0, "width": self.width, "height": height, "scale": 1}
            options = {"captureBeyondViewport": True, "clip": clip}
            content = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
            Path(SHOTS, f"{name}.png").write_bytes(base64.b64decode(content))

    @property
    def width(self) -> int:
        return int(self.driver.execute_script("return innerWidth"))

    def serious_findings(self) -> list[tuple[str, str]]:
        """What axe calls serious or critical."""
        # The page's policy forbids scripts from elsewhere, but not those of the driver.
        self.driver.execute_script(AXE.read_text(encoding="utf-8"))
        found = self.driver.execute_async_script(
            "axe.run(document).then(arguments[0], (error) => arguments[0](String(error)))"
        )
        assert len(found["passes"]) > 10
        return [
            (violation["id"], violation["nodes"][0]["html"])
            for violation in found["violations"]
            if violation["impact"] in ("serious", "critical")
        ]


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_edit_shows_progress_partials_and_result(
    driver: webdriver.Chrome, running: RunningServer, photo: Path, width: int
) -> None:
    page = Playground(driver, running.url, width=width)
    page.shoot(f"start-{width}")
    page.edit(photo)
    until(lambda: page.text("status").startswith("Step"))
    until(lambda: page.the("after").get_attribute("data-kind") == "partial")
    assert page.the("progress").is_displayed()
    assert float(page.the("progress").get_property("value")) > 0
    page.shoot(f"partial-{width}")
    until(page.is_done)
    page.shoot(f"done-{width}")
    assert page.the("after").get_attribute("data-kind") == "result"
    assert "running" in page.text("facts")
    assert "This is the reference" in page.text("facts")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert driver.execute_script("return document.getElementById('after').naturalWidth") == 128
    assert page.serious_findings() == []


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_slider_compares_before_and_after(
    driver: webdriver.Chrome, running: RunningServer, photo: Path, width: int
) -> None:
    page = Playground(driver, running.url, width=width)
    page.edit(photo)
    until(page.is_done)
    slider, after = page.the("compare"), page.the("after")
    slider.send_keys(webdriver.Keys.HOME)
    assert "0%" in after.value_of_css_property("clip-path")
    slider.send_keys(webdriver.Keys.END)
    assert "100%" in after.value_of_css_property("clip-path")
    boxes = [page.the(name).rect for name in ("before", "after")]
    assert boxes[0] == boxes[1]


def test_go_on_makes_the_result_the_next_input(driver: webdriver.Chrome, running: RunningServer, photo: Path) -> None:
    page = Playground(driver, running.url, width=DESKTOP)
    open_everything(driver)
    page.type("seed", "5")
    page.edit(photo)
    until(page.is_done)
    first = pixels(driver, "after")
    page.the("go-on").click()
    until(lambda: pixels(driver, "input") == first)
    page.type("prompt", "remove the star")
    page.the("run").click()
    until(lambda: len(driver.find_elements(By.CSS_SELECTOR, "#history li")) == 2)
    assert pixels(driver, "before") == first
    assert pixels(driver, "after") != first


def test_pasted_and_dropped_images_are_taken(driver: webdriver.Chrome, running: RunningServer) -> None:
    page = Playground(driver, running.url, width=DESKTOP)
    script = """
        const [kind, color, done] = arguments, canvas = document.createElement('canvas');
        canvas.width = canvas.height = 64;
        const context = canvas.getContext('2d');
        context.fillStyle = color;
        context.fillRect(0, 0, 64, 64);
        canvas.toBlob((blob) => {
          const data = new DataTransfer();
          data.items.add(new File([blob], 'x.png', {type: 'image/png'}));
          const options = {bubbles: true, cancelable: true};
          dispatchEvent(kind === 'paste' ? new ClipboardEvent('paste', {clipboardData: data, ...options})
                                         : new DragEvent('drop', {dataTransfer: data, ...options}));
          done();
        });
    """
    for kind, color in (("paste", "rgb(255, 0, 0)"), ("drop", "rgb(0, 0, 255)")):
        driver.execute_async_script(script, kind, color)
        until(lambda color=color: pixels(driver, "input")[:3] == [int(part) for part in color[4:-1].split(", ")])
    assert page.text("run") == "Edit"
    page.the("clear").click()
    assert page.text("run") == "Draw"


def test_without_an_image_one_is_drawn(driver: webdriver.Chrome, running: RunningServer) -> None:
    page = Playground(driver, running.url, width=DESKTOP)
    page.edit(None, "a red circle")
    until(page.is_done)
    assert not page.the("before").is_displayed()
    assert "generations" in page.the("curl").get_property("textContent")


def test_server_errors_are_shown_in_words(driver: webdriver.Chrome, running: RunningServer, photo: Path) -> None:
    page = Playground(driver, running.url, width=PHONE)
    page.edit(photo, "word " * 60)
    until(lambda: page.the("error").is_displayed())
    assert "tokens and this checkpoint reads 48" in page.text("error")
    page.shoot("error-phone")
    assert page.the("run").is_enabled()


def test_cancel_frees_the_worker(driver: webdriver.Chrome, running: RunningServer, photo: Path) -> None:
    page = Playground(driver, running.url, width=DESKTOP)
    page.type("steps", "40")
    page.edit(photo)
    until(lambda: page.text("status").startswith("Step"))
    before = running.metric("kontext_cancelled_total", phase="running")
    driver.find_element(By.TAG_NAME, "body").send_keys(webdriver.Keys.ESCAPE)
    until(lambda: page.text("status") == "Cancelled.")
    until(lambda: running.metric("kontext_cancelled_total", phase="running") == before + 1)


def test_keyboard_alone_makes_an_edit(driver: webdriver.Chrome, running: RunningServer, photo: Path) -> None:
    page = Playground(driver, running.url, width=DESKTOP)
    page.the("file").send_keys(str(photo))
    page.the("prompt").send_keys("make the background red")
    page.the("prompt").send_keys(webdriver.Keys.CONTROL, webdriver.Keys.ENTER)
    until(page.is_done)


def test_preset_and_its_verdict_follow_the_choice(driver: webdriver.Chrome, running: RunningServer) -> None:
    page = Playground(driver, running.url, width=DESKTOP)
    # The page asks the server for its presets first.
    WebDriverWait(driver, 20).until(lambda _: "as diffusers runs it" in page.text("verdict"))
    Select(page.the("preset")).select_by_visible_text("fuse_qkv")
    assert "Not verified on this checkpoint" in page.text("verdict")


def test_curl_line_makes_the_same_image(
    driver: webdriver.Chrome, running: RunningServer, photo: Path, tmp_path: Path
) -> None:
    page = Playground(driver, running.url, width=DESKTOP)
    page.edit(photo, "make the 'background' red; $HOME")
    until(page.is_done)
    driver.execute_script("document.getElementById('code').open = true")
    line = page.the("curl").get_property("textContent").split("| jq")[0].rstrip("\\\n ")
    (tmp_path / "photo.png").write_bytes(photo.read_bytes())
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, check=True)
    content = base64.b64decode(json.loads(done.stdout)["data"][0]["b64_json"])
    with Image.open(BytesIO(content)) as image:
        assert list(image.convert("RGBA").tobytes()) == pixels(driver, "after")


def test_python_lines_make_an_image(
    driver: webdriver.Chrome, running: RunningServer, photo: Path, tmp_path: Path
) -> None:
    page = Playground(driver, running.url, width=DESKTOP)
    page.edit(photo, 'make the "background" red')
    until(page.is_done)
    lines = page.the("python").get_property("textContent")
    (tmp_path / "photo.png").write_bytes(photo.read_bytes())
    subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "edited.png").read_bytes().startswith(b"\x89PNG")


def test_page_asks_its_own_server_only(driver: webdriver.Chrome, running: RunningServer, photo: Path) -> None:
    page = Playground(driver, running.url, width=DESKTOP)
    page.edit(photo)
    until(page.is_done)
    addresses = requested(driver)
    assert f"{running.url}/v1/images/edits" in addresses
    assert all(address.startswith((running.url, "blob:", "data:")) for address in addresses)
    assert driver.get_log("browser") == []


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_dark_scheme_has_enough_contrast(
    driver: webdriver.Chrome, running: RunningServer, photo: Path, width: int
) -> None:
    page = Playground(driver, running.url, width=width, dark=True)
    page.edit(photo)
    until(page.is_done)
    page.shoot(f"dark-{width}")
    assert page.serious_findings() == []


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_api_page_fits_and_is_accessible(driver: webdriver.Chrome, running: RunningServer, width: int) -> None:
    look(driver, f"{running.url}/docs", width=width)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert "/v1/images/edits" in driver.find_element(By.TAG_NAME, "main").text
    driver.execute_script(AXE.read_text(encoding="utf-8"))
    found = driver.execute_async_script("axe.run(document).then(arguments[0])")
    assert [each["id"] for each in found["violations"] if each["impact"] in ("serious", "critical")] == []


def pixels(driver: webdriver.Chrome, identity: str) -> list[int]:
    """Of a picture on the page, as it was decoded."""
    script = """
        const picture = document.getElementById(arguments[0]), canvas = document.createElement('canvas');
        canvas.width = picture.naturalWidth;
        canvas.height = picture.naturalHeight;
        if (!canvas.width) return [];
        const context = canvas.getContext('2d');
        context.drawImage(picture, 0, 0);
        return [...context.getImageData(0, 0, canvas.width, canvas.height).data];
    """
    return list(driver.execute_script(script, identity))
