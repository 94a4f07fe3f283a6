from __future__ import annotations

import pytest

from kontext_fast.cli.options import parse_lora
from kontext_fast.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.5", ("a.safetensors", 0.5)),
        ("dir/a.safetensors:-1", ("dir/a.safetensors", -1.0)),
        ("C:/a.safetensors", ("C:/a.safetensors", 1.0)),
        ("C:/a.safetensors:2", ("C:/a.safetensors", 2.0)),
    ],
)
def test_lora_is_a_path_with_an_optional_strength(text: str, expected: tuple[str, float]) -> None:
    assert parse_lora(text) == expected


@pytest.mark.parametrize("text", [":0.5", "a.safetensors:nan", "a.safetensors:inf"])
def test_strength_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="STRENGTH"):
        parse_lora(text)
