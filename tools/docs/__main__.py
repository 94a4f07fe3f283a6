"""Render what this project publishes from the records in `results/`: `python -m tools.docs [--check]`.

`--check` changes nothing and ends with 1 where something differs from the records.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kontext_fast.errors import KontextError
from tools.docs.repository import differences, render_repository

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str]) -> int:
    try:
        if arguments == ["--check"]:
            changes = differences(ROOT)
            print("\n".join([*changes, "Run `make docs`."] if changes else ["Everything is as the records say."]))
            return 1 if changes else 0
        if arguments:
            print(__doc__, file=sys.stderr)
            return 2
        render_repository(ROOT)
    except KontextError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
