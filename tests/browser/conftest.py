"""One browser for all tests. Where there is none `make test` skips them; `make test-full` installs it, or fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from selenium import webdriver

from kontext_fast.records.schema import Record, ResultFile
from kontext_fast.records.store import ResultStore
from kontext_fast.report.output.publish import publish
from tests.browser.chromium import PACKAGES, chromium, executables, install
from tests.cost.gpu_records import SECONDS, gpu_run
from tests.records.builder import full, item, result

REQUIRED = "KONTEXT_REQUIRE_BROWSER"
"""Set by `make test-full`."""


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    required = os.environ.get(REQUIRED) == "1"
    if required and executables() is None:
        install()
    found = executables()
    if found is None:
        reason = f"needs Chromium with chromedriver: apt-get install {' '.join(PACKAGES)}"
        if required:
            pytest.fail(reason)
        pytest.skip(reason)
    with chromium(found, tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="session")
def h200(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder of made-up runs on an H200, in two sizes, with pictures and a failure."""
    store = ResultStore(tmp_path_factory.mktemp("h200"))
    store.write(_h200_result(store))
    return store.folder


@pytest.fixture(scope="session")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder of made-up runs on a CPU, which has no price."""
    store = ResultStore(tmp_path_factory.mktemp("cpu"))
    store.write(full(store))
    return store.folder


@pytest.fixture(scope="session")
def h200_page(h200: Path) -> Path:
    return publish(h200).document


@pytest.fixture(scope="session")
def cpu_page(cpu: Path) -> Path:
    return publish(cpu).document


def _h200_result(store: ResultStore) -> ResultFile:
    outputs = {
        preset: store.put_image(Image.new("RGB", (256, 256), color))
        for preset, color in zip(SECONDS, ("navy", "blue", "teal"), strict=True)
    }
    picture = store.put_image(Image.new("RGB", (256, 256), "red"))
    runs: list[Record] = []
    for round_ in range(3):
        for preset in SECONDS:
            large = gpu_run(preset, round_, order=len(runs))
            runs += [_with_output(large, outputs[preset]), _smaller(large, order=len(runs) + 1)]
    failed = runs[-1].model_copy(
        update={
            "run_id": "gone",
            "order": 99,
            "status": "crash",
            "reason": "It was killed by signal 9.",
            "measurements": (),
        }
    )
    return result([*runs, failed], [item("a", picture), item("b", picture)])


def _with_output(run: Record, image: str) -> Record:
    (measured,) = run.measurements
    samples = tuple(s if s.warmup else s.model_copy(update={"images": (image,)}) for s in measured.samples)
    return run.model_copy(update={"measurements": (measured.model_copy(update={"samples": samples}),)})


def _smaller(run: Record, order: int) -> Record:
    """The same run at 512x512 in a third of the time."""
    (measured,) = run.measurements
    workload = measured.workload.model_copy(update={"width": 512, "height": 512})
    samples = tuple(s.model_copy(update={"wall_s": s.wall_s / 3}) for s in measured.samples)
    smaller = measured.model_copy(update={"workload": workload, "samples": samples})
    return run.model_copy(update={"run_id": f"{run.run_id}-small", "order": order, "measurements": (smaller,)})
