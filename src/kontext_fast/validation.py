"""What a value that pydantic rejected is wrong about, in plain words: pydantic's own speak of inputs and parsing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_LONGEST = 60

_WHAT: Mapping[str, str] = {
    "int_parsing": "is not a whole number",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "int_parsing_size": "is too large a number",
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "bool_parsing": "is neither true nor false",
    "bool_type": "is neither true nor false",
    "string_type": "is not a text",
    "path_type": "is not a path",
    "list_type": "is not a list",
    "tuple_type": "is not a list",
    "set_type": "is not a list",
    "frozen_set_type": "is not a list",
    "dict_type": "is not a table",
    "model_type": "is not a table",
    "date_type": "is not a date such as 2026-11-25",
    "date_parsing": "is not a date such as 2026-11-25",
    "date_from_datetime_parsing": "is not a date such as 2026-11-25",
    "date_from_datetime_inexact": "is not a date such as 2026-11-25",
}
"""By pydantic's type of an error: what follows the value that was given."""

_WITH_LIMIT: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than_equal": lambda limit: f"is below {limit['ge']:g}",
    "greater_than": lambda limit: f"is not above {limit['gt']:g}",
    "less_than_equal": lambda limit: f"is above {limit['le']:g}",
    "less_than": lambda limit: f"is not below {limit['lt']:g}",
    "literal_error": lambda limit: f"is not one of {_listed(limit['expected'])}",
    "enum": lambda limit: f"is not one of {_listed(limit['expected'])}",
    "string_pattern_mismatch": lambda limit: f"does not have the form {limit['pattern']}",
    "string_too_short": lambda limit: f"is shorter than {limit['min_length']} letters",
    "string_too_long": lambda limit: f"is longer than {limit['max_length']} letters",
    "too_short": lambda limit: f"has {limit['actual_length']} values of at least {limit['min_length']}",
    "too_long": lambda limit: f"has more than {limit['max_length']} values",
}


def complaint(error: ErrorDetails) -> str:
    """What is wrong, e.g. `'many' is not a whole number`, `there is no such key`; without the key and a full stop."""
    kind, limit = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "this key is missing"
    if kind == "extra_forbidden":
        return "there is no such key"
    if kind in ("value_error", "assertion_error"):
        # Raised by our own validators, in words of our own.
        return str(limit.get("error") or error["msg"]).rstrip(".")
    what = _WHAT.get(kind) or (_WITH_LIMIT[kind](limit) if kind in _WITH_LIMIT else "is not valid here")
    return f"{_shown(error['input'])} {what}"


def first_mistake(error: ValidationError) -> tuple[tuple[str | int, ...], str]:
    """Where the first mistake is, as keys and positions, and its `complaint`.

    A key that does not exist comes first: if a key is misspelt, the correct one is missing too.
    """
    first = min(error.errors(include_url=False), key=lambda mistake: mistake["type"] != "extra_forbidden")
    return first["loc"], complaint(first)


def dotted(location: tuple[str | int, ...]) -> str:
    """`("sweeps", 1, "steps")` as `sweeps.1.steps`."""
    return ".".join(map(str, location))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _listed(expected: str) -> str:
    """Pydantic's `'a', 'b' or 'c'` without quotes."""
    return expected.replace("'", "")
