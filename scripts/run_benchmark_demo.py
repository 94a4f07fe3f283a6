"""Check this machine, run the quick suite and render its report: `python scripts/run_benchmark_demo.py [FOLDER]`.

Without a GPU or without HF_TOKEN it runs on the bundled checkpoint `tiny`, otherwise on the real FLUX.1-Kontext-dev.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime

from kontext_fast.cli.main import run

FAILED_ROWS = 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default=f"kontext-demo-{datetime.now():%Y%m%d-%H%M%S}")
    out = parser.parse_args().folder
    print(f"The suite is quick and the folder {out}.")
    if code := run(["doctor"]):
        return code
    benched = run(["bench", "--suite", "quick", "--out", out])
    if benched not in (0, FAILED_ROWS):
        return benched
    return run(["report", out]) or benched


if __name__ == "__main__":
    sys.exit(main())
