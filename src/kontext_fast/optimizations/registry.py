"""Discovers optimizations by scanning the package `techniques`, so that a new one edits no list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from kontext_fast.discovery import classes, unknown_name
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations import techniques
from kontext_fast.optimizations.base import Conflict, Optimization


@cache
def discover() -> Mapping[str, type[Optimization]]:
    """Every optimization by name, in alphabetical order. Raises KontextError as `discovery.classes` does."""
    return classes(techniques, Optimization, "optimization")


@dataclass(frozen=True)
class Side:
    """A conflict from the side of one of its two optimizations."""

    other: str
    declaring: str
    """Which of the two has it among its `conflicts`."""
    conflict: Conflict


def conflicts_by_name() -> dict[str, list[Side]]:
    """All conflicts of each optimization, those that only the other side declares included."""
    known = discover()
    sides: dict[str, list[Side]] = {name: [] for name in known}
    for name, declared in known.items():
        for conflict in declared.conflicts:
            sides[name].append(Side(conflict.other, name, conflict))
            sides[conflict.other].append(Side(name, name, conflict))
    return sides


def build(name: str, parameters: Mapping[str, Any]) -> Optimization:
    """The optimization `name` with `parameters`. Raises InvalidInput for an unknown name or a bad parameter."""
    known = discover()
    if name not in known:
        raise InvalidInput(unknown_name("optimization", name, known))
    return known[name](**parameters)
