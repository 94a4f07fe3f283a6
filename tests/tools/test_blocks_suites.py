"""The table of suites has every suite that ships with the package."""

from __future__ import annotations

from pathlib import Path

from kontext_fast.bench import bundled_suites
from kontext_fast.bench.suites import read_suite
from tools.docs.blocks import suites
from tools.docs.doc_context import DocContext
from tools.docs.result_tree import find_published


def test_each_suite_is_a_row_with_its_summary(tmp_path: Path) -> None:
    lines = suites.render(DocContext(find_published(tmp_path), None)).splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == bundled_suites()
    for line, name in zip(lines, bundled_suites(), strict=True):
        summary = read_suite(name).resolve("hub").summary
        assert summary
        assert summary in line
