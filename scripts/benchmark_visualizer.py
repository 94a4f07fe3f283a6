"""Render charts and a page: `python scripts/benchmark_visualizer.py [FOLDER]`; the default is the newest result."""

from __future__ import annotations

import sys
from pathlib import Path

from kontext_fast.cli.main import run
from kontext_fast.records.store import RECORDS_NAME


def newest_result() -> str:
    """The folder below this one whose records were written last; this one where there are none."""
    records = [*Path().glob(f"results/{RECORDS_NAME}"), *Path().glob(f"*/results/{RECORDS_NAME}")]
    newest = max(records, key=lambda path: path.stat().st_mtime, default=None)
    return str(newest.parents[1]) if newest else "."


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not arguments:
        arguments = [newest_result()]
        print(f"The records are those in {arguments[0]}; name a folder to render another one.")
    sys.exit(run(["report", *arguments]))
