"""The site of the documents, as it is built and served: whole, readable, and it asks no other host for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from tests import needs
from tests.browser.chromium import look, requested
from tests.browser.test_page import AXE

pytestmark = [needs.mkdocs, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(
    r"<(?:script|img|source|iframe|video|audio|embed)\b[^>]*\b(?:src|srcset)=[\"']?(?:https?:)?//"
    r"|<link\b[^>]*\bhref=[\"']?(?:https?:)?//|@import[^;]*//|url\(\s*[\"']?(?:https?:)?//",
    re.IGNORECASE,
)
"""What a browser loads by itself; a link that a reader may follow is none of it."""

TABLES_ARE_REACHED = (
    "return document.querySelectorAll('table').length === document.querySelectorAll('[tabindex] table').length"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_no_page_loads_anything_from_outside(site: Path) -> None:
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css", ".svg")]
    assert len(files) > 30
    assert [path.name for path in files if OUTSIDE.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "text",
    [
        '<link rel="stylesheet" href="https://fonts.googleapis.com/css">',
        "<script async src=//cdn.example.com/a.js></script>",
        '<img alt="a" src="https://example.com/a.png">',
        "body { background: url('https://example.com/a.png') }",
        '@import "https://example.com/a.css";',
    ],
)
def test_what_is_loaded_from_outside_would_be_found(text: str) -> None:
    assert OUTSIDE.search(text)


def test_docstrings_and_options_are_written_out(site: Path) -> None:
    reference = (site / "reference.html").read_text(encoding="utf-8")
    assert "faster in place" in reference
    assert 'id="kontext_fast.optimizations.acceleration.accelerate"' in reference
    assert "--true-cfg" in (site / "commands.html").read_text(encoding="utf-8")


def test_links_between_pages_lead_somewhere(site: Path) -> None:
    missing = []
    for page in site.rglob("*.html"):
        for link in re.findall(r"<a\b[^>]*?\bhref=\"(?!\w+:|#|/)([^\"#?]+)", page.read_text(encoding="utf-8")):
            if not (page.parent / link).exists():
                missing.append((page.relative_to(site).as_posix(), link))
    assert missing == []


@pytest.mark.parametrize("page", ["index.html", "commands.html", "reference.html"])
def test_served_pages_ask_no_other_host(driver: webdriver.Chrome, address: str, page: str) -> None:
    look(driver, f"{address}/{page}")
    addresses = requested(driver)
    assert f"{address}/{page}" in addresses
    assert [each for each in addresses if each.startswith(("http", "ws")) and not each.startswith(f"{address}/")] == []
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_site_fits_a_phone_and_follows_the_scheme(driver: webdriver.Chrome, address: str) -> None:
    def brightness() -> int:
        color = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in re.findall(r"\d+", color)[:3])

    look(driver, f"{address}/presets.html", width=390, dark=True)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
    WebDriverWait(driver, 60).until(lambda _: brightness() < 200)
    look(driver, f"{address}/presets.html", width=390)
    WebDriverWait(driver, 60).until(lambda _: brightness() > 600)


@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious_in_the_site(driver: webdriver.Chrome, address: str, width: int) -> None:
    for page in ("index.html", "commands.html"):
        look(driver, f"{address}/{page}", width=width)
        # The theme's script wraps tables once the page is there.
        WebDriverWait(driver, 60).until(lambda browser: browser.execute_script(TABLES_ARE_REACHED))
        driver.execute_script(AXE.read_text(encoding="utf-8"))
        found = driver.execute_async_script(
            "axe.run(document).then(arguments[0], (error) => arguments[0](String(error)))"
        )
        serious = [
            (page, violation["id"], violation["nodes"][0]["html"], violation["nodes"][0]["failureSummary"])
            for violation in found["violations"]
            if violation["impact"] in ("serious", "critical")
        ]
        assert serious == []
