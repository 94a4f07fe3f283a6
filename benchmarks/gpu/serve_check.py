"""Serve random weights on this machine's GPU, and put the server under 80 % of what it can do for five minutes.

Usage: python -m benchmarks.gpu.serve_check --out results/NAME [--preset turbo] [--seconds 300] [--limit 360]

Loading and warm-up count against `--limit`, in seconds of the whole: the load is shortened to what is left of it. The
server needs the packages of the extra `serve`, and the load httpx.
Exit code 0: done; 1: the server failed; 3: no GPU.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.check import NO_GPU, has_gpu, option_parser

_ADDRESS = re.compile(r"Serving \S+ on (http://\S+) once")
_LAST_S = 25.0
"""For the edits before the load, the answers after it, and the end of the server."""


def main() -> int:
    """Serve, load and store."""
    parser = option_parser(__doc__)
    parser.add_argument("--preset", default="turbo")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--limit", type=float, default=360.0)
    parser.add_argument("--checkpoint", default="random")
    arguments = parser.parse_args()
    if arguments.out is None:
        parser.error("--out is missing")
    if arguments.checkpoint == "random" and not has_gpu():
        return NO_GPU
    begin = time.monotonic()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    log = out / "server.log"
    with log.open("wb") as output:
        serve = [sys.executable, "-m", "kontext_fast", "serve", "--port", "0", "--checkpoint", arguments.checkpoint]
        server = subprocess.Popen([*serve, "--preset", arguments.preset], stdout=output, stderr=output)
        try:
            url = _until_ready(server, log, begin + arguments.limit)
            if url is None:
                print(f"The server did not become ready; its log is {log}.", file=sys.stderr)
                return 1
            ready = time.monotonic() - begin
            seconds = min(arguments.seconds, arguments.limit - ready - _LAST_S)
            print(f"Ready after {ready:.0f} s; the load takes {seconds:.0f} s.", flush=True)
            load = [sys.executable, "-m", "benchmarks.serve_load", url, "--seconds", str(seconds), "--out", str(out)]
            code = subprocess.run(load, check=False).returncode
            server.send_signal(signal.SIGTERM)
            ended = server.wait(_LAST_S)
            print(f"The server ended with code {ended} after SIGTERM.")
            return int(code != 0 or ended != 0)
        finally:
            server.kill()
            server.wait()


def _until_ready(server: subprocess.Popen[bytes], log: Path, end: float) -> str | None:
    """The server's address once it is ready; None where it ended, or not in time."""
    import httpx

    while server.poll() is None and time.monotonic() < end:
        time.sleep(0.5)
        address = _ADDRESS.search(log.read_text())
        if address is None:
            continue
        try:
            if httpx.get(f"{address[1]}/readyz", trust_env=False).status_code == 200:
                return address[1]
        except httpx.TransportError:
            continue
    return None


if __name__ == "__main__":
    sys.exit(main())
