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


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    assert inject(TEXT, lambda name: f"\nnew {name}\n\n", "README.md") == (
        "# Title\n<!-- records: headline -->\nnew headline\n<!-- /records: headline -->\nwords between\n"
        "<!-- records: presets -->\nnew presets\n<!-- /records: presets -->\nthe end, without a newline"
    )


def test_filling_twice_is_filling_once() -> None:
    once = inject(TEXT, str.upper, "README.md")
    assert inject(once, str.upper, "README.md") == once


def test_a_text_without_marks_is_left_as_it_is() -> None:
    assert inject("a <!-- comment -->\n", str.upper, "README.md") == "a <!-- comment -->\n"


def test_what_people_wrote_can_be_told_from_what_was_rendered() -> None:
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
def test_marks_that_do_not_match_are_said_with_their_line(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        inject(text, str.upper, "README.md")
