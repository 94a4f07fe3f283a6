"""What must be settled before any test module is imported, and what is said after the last test."""

from __future__ import annotations

import importlib
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

# A shell starts background jobs with Ctrl-C ignored, and what we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a GPU the kernels run in Triton's interpreter. Triton decides that once, when it is imported, and other tests
# import it too, by way of torch.
if find_spec("triton") is not None and not torch.cuda.is_available():
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRITON_INTERPRET", "1")
        for name in ("fused", "group_norm_silu", "between_convolutions", "safe_softmax"):
            importlib.import_module(f"kontext_fast.engine.kernels.{name}")


AddPlugin = Callable[..., Path]


@pytest.fixture
def add_plugin(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[AddPlugin]:
    """Puts a module into a package that is scanned, from a folder outside of it, until the test ends."""
    added: list[tuple[ModuleType, str]] = []
    caches: list[Any] = []

    def add(package: ModuleType, name: str, code: str, *discovered: Any) -> Path:
        """The folder of the module; `discovered` are cached functions that scan the package."""
        folder = tmp_path_factory.mktemp("plugins")
        (folder / f"{name}.py").write_text(code)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        added.append((package, name))
        caches.extend(discovered)
        _clear(caches)
        return folder

    yield add
    for package, name in added:
        sys.modules.pop(f"{package.__name__}.{name}", None)
        vars(package).pop(name, None)
    _clear(caches)


def _clear(caches: Iterable[Any]) -> None:
    for cache in caches:
        cache.cache_clear()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end what was skipped, and what brings it: the reason of a skip ends with a command."""
    lines = skipped_by_reason(terminalreporter.stats.get("skipped", []))
    if lines:
        terminalreporter.section("skipped, and the command that brings it")
        for line in lines:
            terminalreporter.write_line(line)


def skipped_by_reason(reports: Iterable[pytest.TestReport | pytest.CollectReport]) -> list[str]:
    """One line per reason, with the number of its tests or modules, most first."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in reports if isinstance(report.longrepr, tuple)
    )
    return [f"{count} x {reason}" for reason, count in reasons.most_common()]
