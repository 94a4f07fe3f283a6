"""This project's own README, guides, charts and reports are those of its records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kontext_fast.records.store import RECORDS_NAME
from kontext_fast.report.marked import passages, without_passages
from kontext_fast.report.repository import differences

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

CLAIMS = re.compile(r"\d+\.\d+ ?x\b|\$ ?\d|\b\d+\.\d+ (s|ms|GiB)\b|\b\d+ GiB\b")
"""Factors, dollars, times and memory; sizes such as 128x128 are none."""


def test_documents_and_records_agree() -> None:
    """`make docs` mends it."""
    assert differences(ROOT) == []


def test_where_there_are_records_the_readme_shows_them() -> None:
    if not list((ROOT / "results").glob(f"**/{RECORDS_NAME}")):
        # Without any, the documents say so; the test above holds them, and the reports, to that.
        assert not (ROOT / "reports").exists()
        assert not (ROOT / "visualizations").exists()
        return
    assert {"headline", "presets"} <= set(passages(README.read_text()))


def test_no_number_of_the_readme_was_typed() -> None:
    typed = [line for line in without_passages(README.read_text()).splitlines() if CLAIMS.search(line)]
    assert typed == []


@pytest.mark.parametrize(
    "claim", ["2.59x faster", "1.5 x", "saves $1,091 a month", "takes 2.74 s", "36.2 GiB", "24 GiB"]
)
def test_typed_numbers_would_be_found(claim: str) -> None:
    assert CLAIMS.search(claim)


@pytest.mark.parametrize("words", ["128x128", "1024x1024 pixels", "26.8 dB", "Python 3.11 to 3.13", "FLUX.1-Kontext"])
def test_other_numbers_are_none(words: str) -> None:
    assert not CLAIMS.search(words)
