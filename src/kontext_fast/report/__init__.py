"""Charts and pages computed from stored records and images. Knows nothing of torch."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_report"]


def write_report(records: Path, out: Path | None = None) -> Path:
    """Write the page of `records` with its charts and raw samples, and return its path; see `publish.publish`."""
    # Late, because the page imports kontext_fast.cost, which imports the groups of this package.
    from kontext_fast.report.output.publish import publish

    return publish(records, out).document
