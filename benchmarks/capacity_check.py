"""Hold the forecast of `kontext capacity` against a real server under load, on a quiet machine with two cores.

Usage: python -m benchmarks.capacity_check --out FILE.json [--requests 2000] [--shares 0.4,0.55,0.7] [--steps 2]

A server of `tiny` with one worker gets one core, what sends the requests another one. Seconds of a call are those of
the worker while two clients keep it busy, half of them measured before and half after each load; what HTTP adds to a
call alone is added to the forecast, which leaves it out. A forecast holds where it lies in the 95 % interval of the
measured p95, or within 15 % of it. With one step, three loads of 2,000 requests take about 25 minutes; each is stored
when it ends, and the same command goes on with those that are not in the file.
Exit code 0: all hold; 1: one does not, or a request was not served.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import psutil

from kontext_fast.analysis.served_load import load_summary
from kontext_fast.bench.served_load import LoadPlan, run_load
from kontext_fast.cost.capacity import capacity_of
from kontext_fast.datasets.shapes import held_out

NEAR = 0.15
"""How far a forecast may lie from the measured p95, as a share of it."""
_CALLS = 200
_START_S = 300.0
_ADDRESS = re.compile(r"Serving \S+ on (http://\S+) once")


def main() -> int:
    """Start a server, load it, compare, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--shares", default="0.4,0.55,0.7")
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    cores = psutil.Process().cpu_affinity()
    psutil.Process().cpu_affinity(cores[-1:])
    report = {"machine": f"{psutil.cpu_count(logical=False)} cores", "steps": arguments.steps, "loads": []}
    if arguments.out.exists():
        report = json.loads(arguments.out.read_text())
    rows = report["loads"]
    shares = [share for share in map(float, arguments.shares.split(",")) if share not in {row["asked"] for row in rows}]
    with running_server(arguments.steps, cores[:1]) as url:
        for share in shares:
            rows.append({"asked": share, **measured(url, share, arguments.requests)})
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(row["holds"] for row in rows) else 1


@contextmanager
def running_server(steps: int, cores: Sequence[int]) -> Iterator[str]:
    """The address of a ready server of `tiny` with one worker, all on `cores`."""
    command = [sys.executable, "-m", "kontext_fast", "serve", "--checkpoint", "tiny", "--preset", "baseline"]
    options = ["--device", "cpu", "--threads", "1", "--port", "0", "--steps", str(steps), "--queue", "1000"]
    with TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
        process = subprocess.Popen([*command, *options], stderr=log, cwd=folder)
        psutil.Process(process.pid).cpu_affinity(list(cores))
        try:
            end = time.monotonic() + _START_S
            while (found := _ADDRESS.search(Path(folder, "log").read_text())) is None or not _is_ready(found[1]):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the server did not start: {Path(folder, 'log').read_text()}")
                time.sleep(0.1)
            yield found[1]
        finally:
            process.terminate()
            process.wait()


def measured(url: str, share: float, requests: int) -> dict[str, Any]:
    """The forecast and the measurement for `share` of what the worker can do."""
    before = calls(url, clients=2)
    added_s = float(np.median([wall - run for wall, run in calls(url, clients=1)]))
    rate = share / float(np.mean([run for _, run in before]))
    plan = LoadPlan(rate_per_s=rate, seconds=requests / rate, deadline_s=300.0, seed=int(100 * share))
    (record,) = asyncio.run(run_load(url, plan)).records
    assert record.load_test is not None
    summary = load_summary(record.load_test)
    run_s = [run for _, run in [*before, *calls(url, clients=2)]]
    if not (row := compared(run_s, rate, added_s, summary.latency_p95))["share"] < 1:
        print("The machine became slower than the load: something else runs on it.", file=sys.stderr)
    row |= {"served": summary.served, "requests": summary.requests, "busy_share": summary.busy_share}
    row["holds"] = row["holds"] and summary.served == summary.requests
    print(json.dumps(row), flush=True)
    return row


def compared(run_s: Sequence[float], rate: float, added_s: float, p95: Any) -> dict[str, Any]:
    """Whether the forecast for calls of `run_s` seconds at `rate` a second agrees with the `Percentile` `p95`."""
    call_s = float(np.mean(run_s))
    share = rate * call_s
    forecast = capacity_of(1, run_s, rate).latency_p95_s + added_s if share < 1 else None
    return {
        "share": share,
        "call_s": call_s,
        "http_s": added_s,
        "forecast_p95_s": forecast,
        "measured_p95_s": [p95.seconds, p95.lower, p95.upper],
        "holds": forecast is not None
        and (p95.lower <= forecast <= p95.upper or abs(forecast / p95.seconds - 1) <= NEAR),
    }


def calls(url: str, *, clients: int) -> list[tuple[float, float]]:
    """Seconds at the client and in the worker of calls that so many clients make, each after its last one."""
    content = BytesIO()
    held_out(1)[0].image.save(content, "PNG")
    with httpx.Client(base_url=url, timeout=300) as http, ThreadPoolExecutor(clients) as threads:

        def call(seed: int) -> tuple[float, float]:
            begin = time.perf_counter()
            data = {"prompt": "make the background red", "seed": str(seed)}
            answer = http.post(
                "/v1/images/edits", data=data, files={"image": ("x.png", content.getvalue(), "image/png")}
            )
            return time.perf_counter() - begin, float(answer.json()["kontext"]["run_s"])

        return list(threads.map(call, range(_CALLS)))


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.ConnectError:
        return False


if __name__ == "__main__":
    sys.exit(main())
