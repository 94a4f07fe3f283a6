from __future__ import annotations

import re

import pytest

from tests import needs
from tests.conftest import skipped_by_reason


def report(reason: str) -> pytest.CollectReport:
    return pytest.CollectReport("a.py::test", "skipped", ("a.py", 1, f"Skipped: {reason}"), [])


def test_skips_are_counted_by_reason_most_first() -> None:
    reports = [report("needs x: get x"), report("needs y: get y"), report("needs y: get y")]
    assert skipped_by_reason(reports) == ["2 x needs y: get y", "1 x needs x: get x"]


def test_every_need_names_a_command() -> None:
    marks = [mark.mark for mark in vars(needs).values() if isinstance(mark, pytest.MarkDecorator)]
    assert len(marks) > 5
    for reason in (*(mark.kwargs["reason"] for mark in marks), needs.GPU, needs.PEERS, needs.TRITON):
        assert re.fullmatch(r"needs [^:]+: \S.+", reason)
