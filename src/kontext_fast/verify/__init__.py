"""Judges stored outputs and appends what it found to the records."""

from kontext_fast.verify.shapes_scores import judge_records

__all__ = ["judge_records"]
