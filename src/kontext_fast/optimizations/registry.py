"""Finds every optimization by scanning this package, so that adding one edits no list."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from kontext_fast import optimizations
from kontext_fast.errors import InvalidInput, KontextError
from kontext_fast.optimizations.base import Conflict, Optimization


@cache
def discover() -> Mapping[str, type[Optimization]]:
    """Every optimization by name, in alphabetical order. Raises KontextError as `scan` does."""
    return scan(optimizations)


def scan(package: ModuleType) -> dict[str, type[Optimization]]:
    """The optimizations that the modules of `package` define, by name, in alphabetical order.

    Raises KontextError if a module does not import or two classes share a name: an optimization never just vanishes.
    """
    found: dict[str, type[Optimization]] = {}
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        try:
            module = importlib.import_module(info.name)
        except Exception as error:
            raise KontextError(f"The module {info.name} does not import; fix it or remove it: {error!r}.") from error
        for defined in _defined_in(module):
            if (other := found.get(defined.name)) is not None:
                raise KontextError(
                    f"{other.__module__} and {defined.__module__} both define the optimization {defined.name!r}; "
                    "rename one of them."
                )
            found[defined.name] = defined
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Side:
    """A conflict as one of the two optimizations in it sees it."""

    other: str
    declaring: str
    """Which of the two has it among its `conflicts`."""
    conflict: Conflict


def conflicts_by_name() -> dict[str, list[Side]]:
    """Of every optimization: all its conflicts, those included that only the other one declares."""
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
        raise InvalidInput(unknown("optimization", name, known))
    return known[name](**parameters)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not among `known`, with the closest ones that are."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return f"There is no {kind} {name!r}; did you mean {' or '.join(close)}?"
    return f"There is no {kind} {name!r}; choose one of {', '.join(known)}."


def _defined_in(module: ModuleType) -> list[type[Optimization]]:
    return [
        value
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, Optimization)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
        and not key.startswith("_")
    ]
