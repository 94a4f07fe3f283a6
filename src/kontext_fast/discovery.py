"""Discovery of plugins: every module of a package is imported and searched for what it defines, so that adding a plugin
edits no list. A module that does not import is an error, so that no plugin disappears unnoticed."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, Protocol, TypeVar

from kontext_fast.errors import KontextError


class Named(Protocol):
    """A value that is registered under its name."""

    @property
    def name(self) -> str: ...


_Value = TypeVar("_Value", bound=Named)


def modules(package: ModuleType) -> dict[str, ModuleType]:
    """The modules directly in `package` by their last name, in alphabetical order.

    Raises KontextError if one does not import.
    """
    imported = {}
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        try:
            module = importlib.import_module(info.name)
        except Exception as error:
            raise KontextError(f"The module {info.name} does not import; fix it or remove it: {error!r}.") from error
        imported[info.name.rpartition(".")[2]] = module
    return imported


def modules_with(package: ModuleType, function: str) -> dict[str, ModuleType]:
    """As `modules`. Raises KontextError if one does not define `function`."""
    imported = modules(package)
    for module in imported.values():
        if not callable(getattr(module, function, None)):
            raise KontextError(f"The module {module.__name__} defines no function {function}; add it.")
    return imported


def classes(package: ModuleType, base: type[Any], kind: str) -> dict[str, type[Any]]:
    """The public, concrete subclasses of `base` that the modules of `package` define, by their attribute `name`.

    `kind` names them in errors. Raises KontextError as `modules` does, and if two share a name.
    """
    return _by_name((_classes_of(module, base) for module in modules(package).values()), kind, of_class=True)


def values(package: ModuleType, value_type: type[_Value], kind: str) -> dict[str, _Value]:
    """The public values of `value_type` that the modules of `package` define, by their attribute `name`; a tuple of
    them counts as each of its members.

    `kind` names them in errors. Raises KontextError as `modules` does, and if two share a name.
    """
    return _by_name((_values_of(module, value_type) for module in modules(package).values()), kind, of_class=False)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not among `known`, with the closest ones that are."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return f"There is no {kind} {name!r}; did you mean {' or '.join(close)}?"
    return f"There is no {kind} {name!r}; choose one of {', '.join(known)}."


def _classes_of(module: ModuleType, base: type[Any]) -> Iterator[tuple[ModuleType, Any]]:
    for key, value in vars(module).items():
        if not (inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__):
            continue
        if not (inspect.isabstract(value) or key.startswith("_")):
            yield module, value


def _values_of(module: ModuleType, value_type: type[_Value]) -> Iterator[tuple[ModuleType, _Value]]:
    for key, value in vars(module).items():
        if key.startswith("_"):
            continue
        for member in value if isinstance(value, tuple) else (value,):
            if isinstance(member, value_type):
                yield module, member


def _by_name(by_module: Iterable[Iterable[tuple[ModuleType, Any]]], kind: str, *, of_class: bool) -> dict[str, Any]:
    named: dict[str, tuple[ModuleType, Any]] = {}
    for members in by_module:
        for module, member in members:
            other = named.get(member.name)
            if other is not None and (of_class or other[1] is not member):
                raise KontextError(
                    f"{other[0].__name__} and {module.__name__} both define the {kind} {member.name!r}; "
                    "rename one of them."
                )
            named.setdefault(member.name, (module, member))
    return {name: member for name, (_, member) in sorted(named.items())}
