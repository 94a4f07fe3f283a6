"""Run a benchmark suite: `python scripts/benchmark_suite.py [options of kontext bench]`; the default is `quick`."""

from __future__ import annotations

import sys

from kontext_fast.cli.main import run

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not {"-h", "--help", "--suite"} & set(arguments):
        print("The suite is quick; --suite chooses another one.")
    sys.exit(run(["bench", *arguments]))
