"""Write down how `make test-full` ended: `python scripts/write_outcome.py JUNIT.xml OUT.md`."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree


def main(junit: Path, out: Path) -> None:
    results = ElementTree.parse(junit).getroot()
    cases = list(results.iter("testcase"))
    ends = {f"{case.get('classname')}::{case.get('name')}": _end(case) for case in cases}
    counts = Counter(ends.values())
    # Of the whole run: its tests take longer together, since several run at once.
    seconds = sum(float(suite.get("time", 0)) for suite in results.iter("testsuite"))
    bad = sorted(name for name, end in ends.items() if end in ("failed", "error"))
    told = [
        f"{case.get('name')}: {fact.get('name')}, {fact.get('value')}"
        for case in cases
        for fact in case.iter("property")
    ]
    out.write_text(
        "\n".join(
            [
                "# The last outcome of `make test-full`",
                "",
                f"{datetime.now(UTC).date()}, commit {_commit()}, {platform.system()} {platform.machine()} with "
                f"{os.cpu_count()} processors, Python {platform.python_version()}: "
                + ", ".join(f"{count} {end}" for end, count in sorted(counts.items()))
                + f" in {seconds / 60:.0f} minutes.",
                *(["", "Failed:", "", *(f"- {name}" for name in bad)] if bad else []),
                *(["", "Measured by the tests:", "", *(f"- {fact}" for fact in told)] if told else []),
                "",
            ]
        ),
        encoding="utf-8",
    )


def _end(case: ElementTree.Element) -> str:
    """What a test case of JUnit's XML came to."""
    for tag, end in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
        if case.find(tag) is not None:
            return end
    return "passed"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
