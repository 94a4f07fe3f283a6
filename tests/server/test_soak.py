"""Long and timed tests of the real server; they run in `make test-full` only. Those of `/livez` and of what HTTP adds
want a machine that does nothing else:

    python -m pytest -m slow tests/server/test_soak.py -k "probes or milliseconds"
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from tests.server.processes import RunningServer, png, server, until

pytestmark = pytest.mark.slow

MIB = 2**20

PROBER = """
import json, sys, threading, time, httpx

probes, stop = [], threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
with httpx.Client(base_url=sys.argv[1], trust_env=False) as client:
    client.get("/livez")
    print("probing", flush=True)
    while not stop.wait(0.02):
        start = time.perf_counter()
        assert client.get("/livez").status_code == 200
        probes.append(time.perf_counter() - start)
print(json.dumps(probes))
"""
"""A process of its own: in that of the clients a probe would wait for their threads, and not for the server."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    options = ("--max-steps", "400", "--max-enlargement", "1", "--queue", "8")
    with server(tmp_path_factory.mktemp("server"), *options) as started:
        yield started


@pytest.mark.timeout(900)
def test_thousand_requests_leave_memory_flat(running: RunningServer) -> None:
    processes = [psutil.Process(running.process.pid), running.worker()]

    def sent(first: int, count: int) -> list[httpx.Response]:
        with ThreadPoolExecutor(4) as threads:
            return list(threads.map(lambda seed: running.edit(seed=seed), range(first, first + count)))

    answers = sent(0, 200)
    before = [process.memory_info().rss for process in processes]
    answers += sent(200, 800)
    after = [process.memory_info().rss for process in processes]
    assert {answer.status_code for answer in answers} == {200}
    # Neither lost nor answered twice: each has the seed that its client sent.
    assert [answer.json()["kontext"]["seed"] for answer in answers] == list(range(1000))
    assert len({answer.headers["x-request-id"] for answer in answers}) == 1000
    assert max(now - then for now, then in zip(after, before, strict=True)) < 48 * MIB


def test_twice_the_capacity_keeps_deadlines_and_probes(running: RunningServer) -> None:
    deadline_s = 20.0
    alone = [running.edit(steps=4).json()["kontext"]["run_s"] for _ in range(5)]
    gap_s = float(np.median(alone)) / 2

    def edit(seed: int) -> tuple[int, float, str | None]:
        start = time.perf_counter()
        with httpx.Client(base_url=running.url, timeout=60) as client:
            answer = client.post(
                "/v1/images/edits",
                data={"prompt": "make the background red", "steps": "4", "seed": str(seed)},
                files={"image": png()},
                headers={"x-deadline-seconds": str(deadline_s)},
            )
        return answer.status_code, time.perf_counter() - start, answer.headers.get("retry-after")

    prober = subprocess.Popen(
        [sys.executable, "-c", PROBER, running.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert prober.stdout is not None
    assert prober.stdout.readline() == "probing\n"
    with ThreadPoolExecutor(64) as threads:
        pending = []
        for seed in range(100):
            pending.append(threads.submit(edit, seed))
            time.sleep(gap_s)
        outcomes = [future.result() for future in pending]
    probes = json.loads(prober.communicate(timeout=60)[0])
    accepted = [seconds for status, seconds, _ in outcomes if status == 200]
    refused = [(seconds, wait) for status, seconds, wait in outcomes if status == 429]
    assert len(accepted) + len(refused) == 100
    assert len(refused) > 20
    assert len(accepted) > 30
    assert max(accepted) < deadline_s
    assert max(seconds for seconds, _ in refused) < 1.0
    assert all(wait is not None and int(wait) >= 1 for _, wait in refused)
    assert len(probes) > 50
    assert np.percentile(probes, 99) < 0.05, f"p99 of /livez is {1e3 * np.percentile(probes, 99):.1f} ms"


def test_http_adds_under_twenty_milliseconds(running: RunningServer) -> None:
    added = []
    content = png()
    for _ in range(60):
        start = time.perf_counter()
        answer = running.edit(content)
        added.append(time.perf_counter() - start - answer.json()["kontext"]["run_s"])
    assert np.median(added) < 0.02, f"HTTP adds {1e3 * np.median(added):.1f} ms"


def test_worker_out_of_memory_spoils_no_later_request(tmp_path: Path) -> None:
    # Loaded, the worker holds 0.55 GiB, and an edit of 512x512 takes 0.2 more.
    with server(tmp_path, "--worker-memory", "0.66", "--max-enlargement", "4") as started:
        large = started.edit(size="512x512", timeout=200)
        assert (large.status_code, large.json()["error"]["code"]) == (500, "out_of_memory"), large.text
        assert large.headers["x-should-retry"] == "false"
        assert started.edit(timeout=120).status_code == 200
        again = started.edit(size="512x512")
        assert (again.status_code, again.json()["error"]["code"]) == (400, "too_large")
        assert started.health()["workers"][0]["restarts"] == 1


def test_presets_of_one_precision_switch_in_one_worker(tmp_path: Path) -> None:
    with server(tmp_path, preset="balanced,fast", steps=4) as started:
        assert len(started.health()["workers"]) == 1
        answers = [started.edit(seed=1, preset=preset).json() for preset in ("balanced", "fast", "balanced")]
        computed = [answer["kontext"]["computed_steps"] for answer in answers]
        assert computed[0] == computed[2] == 4 > computed[1]
        assert answers[0]["data"][0]["b64_json"] == answers[2]["data"][0]["b64_json"]


def test_schemathesis_finds_no_server_error(tmp_path: Path) -> None:
    """200 examples per operation: no 5xx, and no answer outside the schema."""
    limits = ("--max-steps", "2", "--max-images", "2", "--max-enlargement", "1")
    command = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    assert command is not None
    with server(tmp_path, *limits) as started:
        checks = "not_a_server_error,response_schema_conformance,status_code_conformance,content_type_conformance"
        options = ("--max-examples", "200", "--checks", checks, "--phases", "coverage,fuzzing", "--no-color")
        run = [command, "run", f"{started.url}/openapi.json", *options, "--suppress-health-check", "all"]
        done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-4000:]
        assert "Traceback" not in started.log()


def test_sigterm_in_a_long_edit_ends_within_the_grace_period(tmp_path: Path) -> None:
    # A slow machine would refuse an edit that it expects to take longer than the usual deadline.
    with server(tmp_path, "--grace", "1", "--max-steps", "1000", "--deadline", "36000") as started:
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(started.edit(steps=1000)))
        thread.start()
        until(lambda: started.health()["running"] == 1)
        start = time.monotonic()
        assert started.stop() == 0
        assert time.monotonic() - start < 15
        thread.join(30)
        assert answers[0].status_code == 503
