"""What pydantic rejects is said in our own words."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator

from kontext_fast.validation import complaint, dotted, first_mistake


class Everything(BaseModel):
    """A field of every kind that this project's data have."""

    model_config = ConfigDict(extra="forbid")

    whole: Annotated[int, Field(ge=1, le=9)] = 1
    number: Annotated[FiniteFloat, Field(gt=0, lt=5)] = 1
    flag: bool = False
    text: Annotated[str, Field(min_length=2, max_length=4, pattern="^[a-z]+$")] = "ab"
    path: Path = Path()
    choice: Literal["page", "blog"] = "page"
    several: Annotated[tuple[int, ...], Field(min_length=1, max_length=2)] = (1,)
    listed: list[int] = []
    table: dict[str, int] = {}
    day: date = date(2026, 1, 1)
    own: int = 0

    @field_validator("own")
    @classmethod
    def _never_seven(cls, value: int) -> int:
        if value == 7:
            raise ValueError("seven is taken; choose another number.")
        return value


BAD: list[tuple[str, Any, str]] = [
    ("whole", "many", "'many' is not a whole number"),
    ("whole", 1.5, "1.5 is not a whole number"),
    ("whole", None, "None is not a whole number"),
    ("whole", 0, "0 is below 1"),
    ("whole", 10, "10 is above 9"),
    ("whole", "9" * 5000, "is too large a number"),
    ("number", "x", "'x' is not a number"),
    ("number", [], "[] is not a number"),
    ("number", float("nan"), "nan is not a finite number"),
    ("number", 0, "0 is not above 0"),
    ("number", 5, "5 is not below 5"),
    ("flag", "maybe", "'maybe' is neither true nor false"),
    ("flag", [], "[] is neither true nor false"),
    ("text", 3, "3 is not a text"),
    ("text", "a", "'a' is shorter than 2 letters"),
    ("text", "abcde", "'abcde' is longer than 4 letters"),
    ("text", "AB", "'AB' does not have the form ^[a-z]+$"),
    ("path", 3, "3 is not a path"),
    ("choice", "pdf", "'pdf' is not one of page or blog"),
    ("several", [], "[] has 0 values of at least 1"),
    ("several", [1, 2, 3], "[1, 2, 3] has more than 2 values"),
    ("several", 3, "3 is not a list"),
    ("listed", 3, "3 is not a list"),
    ("table", 3, "3 is not a table"),
    ("day", "soon", "'soon' is not a date such as"),
    ("own", 7, "seven is taken; choose another number"),
    ("wrong", 1, "there is no such key"),
]


@pytest.mark.parametrize(("key", "value", "words"), BAD, ids=lambda value: str(value)[:30])
def test_complaint_is_plain_and_names_the_value(key: str, value: Any, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Everything.model_validate({key: value})
    (error,) = caught.value.errors()
    said = complaint(error)
    assert words in said
    assert len(said) < 150
    for leak in ("Input", "should", "Value error", "valid integer", "parse"):
        assert leak not in said


def test_misspelt_key_comes_before_what_it_leaves_out() -> None:
    class Point(BaseModel):
        model_config = ConfigDict(extra="forbid")
        x: int
        y: int

    with pytest.raises(ValidationError) as caught:
        Point.model_validate({"x": 1, "yy": 2})
    location, message = first_mistake(caught.value)
    assert (dotted(location), message) == ("yy", "there is no such key")


def test_error_of_a_kind_without_words_is_still_plain() -> None:
    class Odd(BaseModel):
        value: complex

    with pytest.raises(ValidationError) as caught:
        Odd.model_validate({"value": "x"})
    assert complaint(caught.value.errors()[0]) == "'x' is not valid here"
