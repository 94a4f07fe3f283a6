"""Charts and pages computed from stored records and images. Knows nothing of torch."""

from kontext_fast.report.publish import write_report

__all__ = ["write_report"]
