"""The line of a key in a TOML text."""

from __future__ import annotations

import pytest

from kontext_fast.toml_lines import TOMLDecodeError, line_of, parse_toml

TEXT = """\
seed = 7

[tiny]
rounds = 3

[[sweeps]]
name = "sizes"

[[sweeps]]
name = "steps"
"""


def test_keys_sections_and_array_items_have_a_line() -> None:
    keys = ("seed", "tiny", "tiny.rounds", "sweeps[0].name", "sweeps[1]", "sweeps[1].name")
    assert [line_of(TEXT, key) for key in keys] == [1, 3, 4, 7, 9, 10]


def test_the_line_of_a_missing_key_is_its_section() -> None:
    assert line_of(TEXT, "tiny.seed") == 3
    assert line_of(TEXT, "nothing") is None


@pytest.mark.parametrize("text", ["a = " + "[" * 9999, "a = ", "[a"])
def test_text_that_is_no_toml_is_one_kind_of_error(text: str) -> None:
    with pytest.raises(TOMLDecodeError):
        parse_toml(text)
    assert parse_toml("a = 1.5") == {"a": 1.5}
