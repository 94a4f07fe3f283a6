"""Servers as users start them: a process of its own, spoken to over HTTP."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvicorn
from PIL import Image

from kontext_fast.server.app import create_app
from kontext_fast.server.placement import WorkerPlan
from kontext_fast.server.pool import WorkerPool
from kontext_fast.server.settings import ServerSettings
from tests.pipelines import picture

_ADDRESS = re.compile(r"Serving \S+ on (http://\S+) once")
START_S = 120.0
COMMAND = (sys.executable, "-m", "kontext_fast", "serve", "--checkpoint", "tiny")
OPTIONS = ("--device", "cpu", "--threads", "1", "--port", "0")


class RunningServer:
    """A server process and what it has written."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self.url = self._address()
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def log(self) -> str:
        return self._log.read_text()

    def until_ready(self) -> None:
        until(lambda: self.is_ready() or self.ended, START_S)
        assert not self.ended, self.log()

    def is_ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.ConnectError:
            return False

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def worker(self) -> psutil.Process:
        """The process that holds the model."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        (worker,) = [child for child in children if "kontext_fast.server.worker_main" in child.cmdline()]
        return worker

    def metric(self, name: str, **labels: str) -> float:
        """A sample of /metrics; 0 where there is none."""
        from prometheus_client.parser import text_string_to_metric_families

        for family in text_string_to_metric_families(self.client.get("/metrics").text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return 0.0

    def health(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.get("/health").json()
        return answer

    def edit(self, image: bytes | None = None, timeout: float = 60, **fields: object) -> httpx.Response:
        """POST /v1/images/edits of a small picture."""
        values = {"prompt": "make the background red"} | fields
        data = {name: str(value) for name, value in values.items()}
        files = {"image": ("x.png", png() if image is None else image, "image/png")}
        return self.client.post("/v1/images/edits", data=data, files=files, timeout=timeout)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def _address(self) -> str:
        until(lambda: _ADDRESS.search(self.log()) is not None or self.ended, START_S)
        found = _ADDRESS.search(self.log())
        assert found is not None, self.log()
        return found[1]


@contextmanager
def server(
    folder: Path,
    *options: str,
    command: Sequence[str] = COMMAND,
    preset: str = "baseline",
    steps: int = 1,
    ready: bool = True,
    **environment: str,
) -> Iterator[RunningServer]:
    """A server in an empty working folder, killed at the end; one thread, one step and nothing to quantize by default,
    as fast as a real edit can be."""
    log = folder / "server.log"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("KONTEXT_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *OPTIONS, "--preset", preset, "--steps", str(steps), *options],
            cwd=folder,
            stdout=output,
            stderr=output,
            env=variables | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment,
        )
    try:
        running = RunningServer(process, log)
        if ready:
            running.until_ready()
        yield running
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for `condition`; the test fails where it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def png(image: Image.Image | None = None, **options: Any) -> bytes:
    return encoded(image or picture(), "PNG", **options)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    content = BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


@contextmanager
def scripted_server(**settings: Any) -> Iterator[str]:
    """The address of the app over one worker that runs a script, in a thread of this process."""
    listener = socket.create_server(("127.0.0.1", 0))
    chosen = ServerSettings(presets=("baseline",), steps=2, **settings)
    command = (sys.executable, "-m", "tests.server.scripted_worker")
    plans = [WorkerPlan("cpu", "cpu", ("baseline",))]
    pool = WorkerPool(chosen, plans, on_unusable=lambda _: None, command=command)
    server = uvicorn.Server(uvicorn.Config(create_app(chosen, pool), log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        until(lambda: server.started and httpx.get(f"{address}/readyz").status_code == 200, START_S)
        yield address
    finally:
        server.should_exit = True
        thread.join(START_S)
        listener.close()
