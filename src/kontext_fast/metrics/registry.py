"""Finds every metric by scanning this package, so that adding one edits no list."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import ModuleType

from kontext_fast import metrics
from kontext_fast.errors import KontextError
from kontext_fast.metrics.base import Metric


@cache
def discover() -> Mapping[str, type[Metric]]:
    """Every metric by name, in alphabetical order. Raises KontextError as `scan` does."""
    return scan(metrics)


def scan(package: ModuleType) -> dict[str, type[Metric]]:
    """The metrics that the modules of `package` define, by name.

    Raises KontextError if a module does not import or two classes share a name: a metric never just vanishes.
    """
    found: dict[str, type[Metric]] = {}
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        try:
            module = importlib.import_module(info.name)
        except Exception as error:
            raise KontextError(f"The module {info.name} does not import; fix it or remove it: {error!r}.") from error
        for value in vars(module).values():
            if not (inspect.isclass(value) and issubclass(value, Metric) and value.__module__ == module.__name__):
                continue
            if inspect.isabstract(value):
                continue
            if (other := found.get(value.name)) is not None:
                raise KontextError(
                    f"{other.__module__} and {value.__module__} both define the metric {value.name!r}; rename one."
                )
            found[value.name] = value
    return dict(sorted(found.items()))
