"""The environment as a flat table; what differed between runs is said, not averaged away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kontext_fast.analysis import format as fmt
from kontext_fast.records.schema import Record

MOST_VALUES = 3
"""More distinct values than this are counted instead of listed."""


@dataclass(frozen=True)
class Fact:
    name: str
    value: str


def environment_facts(records: Sequence[Record]) -> tuple[Fact, ...]:
    """One fact per key, nested keys joined by dots, over all runs that stored an environment."""
    values: dict[str, dict[str, None]] = {}
    for record in records:
        for name, value in _flat(record.environment):
            values.setdefault(name, {})[value] = None
    return tuple(Fact(name, _joined(list(distinct))) for name, distinct in values.items())


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, _written(name, value)


def _written(name: str, value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes") and isinstance(value, int):
        return fmt.gib(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return str(value)


def _joined(values: Sequence[str]) -> str:
    if len(values) <= MOST_VALUES:
        return " / ".join(values)
    return f"{len(values)} different values, {values[0]} in the first run"
