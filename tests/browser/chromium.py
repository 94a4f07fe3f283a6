"""A headless Chromium on one page, of a file or of a server, driven by Selenium."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

PACKAGES = ("chromium", "chromium-driver")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def executables() -> tuple[str, str] | None:
    """The browser and its driver; None where either is absent."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


def install() -> None:
    """With Debian's packages, which only root may install; without success nothing is there afterwards either."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (("update",), ("install", "--yes", "--no-install-recommends", *PACKAGES)):
        subprocess.run(["apt-get", "-qq", *command], env=environment, check=False, timeout=280)


@contextmanager
def chromium(found: tuple[str, str], profile: Path) -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = found[0]
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(found[1]))
    try:
        yield driver
    finally:
        driver.quit()


def look(driver: webdriver.Chrome, page: Path | str, *, width: int = 1280, dark: bool = False) -> None:
    """Open a page on a screen of that width, and forget what happened before."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    driver.get_log("performance")
    driver.get_log("browser")
    # On a loaded machine `get` may return while the document before is still shown: it is marked, and waited out.
    driver.execute_script("window.leaving = true;")
    driver.get(page if isinstance(page, str) else page.as_uri())
    loaded = "return !window.leaving && document.URL !== 'about:blank' && document.readyState === 'complete';"
    WebDriverWait(driver, 30, poll_frequency=0.02).until(lambda browser: browser.execute_script(loaded))


def open_everything(driver: webdriver.Chrome) -> None:
    """Unfold all that can be, and wait until what that starts is done."""
    driver.execute_async_script(
        "for (const each of document.querySelectorAll('details')) each.open = true;"
        "requestAnimationFrame(() => setTimeout(arguments[0], 50));"
    )


def requested(driver: webdriver.Chrome) -> list[str]:
    """Every address that was asked for since the last look."""
    messages: list[dict[str, Any]] = [
        json.loads(entry["message"])["message"] for entry in driver.get_log("performance")
    ]
    return [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
