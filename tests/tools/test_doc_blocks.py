from __future__ import annotations

import pytest

from kontext_fast.errors import InvalidInput
from tools.docs.doc_blocks import block_names, inject, without_passages

TEXT = """\
# Title
<!-- records: headline -->
old 2.59x
<!-- /records: headline -->
words between
<!-- records: presets -->
<!-- /records: presets -->
the end, without a newline"""


def test_inject_replaces_only_marked_passages() -> None:
    assert inject(TEXT, lambda name: f"\nnew {name}\n\n", "README.md") == (
        "# Title\n<!-- records: headline -->\nnew headline\n<!-- /records: headline -->\nwords between\n"
        "<!-- records: presets -->\nnew presets\n<!-- /records: presets -->\nthe end, without a newline"
    )


def test_inject_twice_equals_once() -> None:
    once = inject(TEXT, str.upper, "README.md")
    assert inject(once, str.upper, "README.md") == once


def test_text_without_marks_is_unchanged() -> None:
    assert inject("a <!-- comment -->\n", str.upper, "README.md") == "a <!-- comment -->\n"


def test_without_passages_keeps_only_written_text() -> None:
    assert block_names(TEXT) == ["headline", "presets"]
    assert "2.59x" not in without_passages(TEXT)
    assert "words between" in without_passages(TEXT)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- records: a -->\n", "does not end"),
        ("\n<!-- /records: a -->\n", "line 2"),
        ("<!-- records: a -->\n<!-- records: b -->\n<!-- /records: b -->\n<!-- /records: a -->\n", "line 2"),
        ("<!-- records: a -->\n<!-- /records: b -->\n", "line 2"),
    ],
)
def test_mismatched_marks_are_reported_with_their_line(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        inject(text, str.upper, "README.md")
