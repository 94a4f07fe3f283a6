"""What must be settled before any test module is imported, and what is said after the last test."""

from __future__ import annotations

import importlib
import signal
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec

import pytest
import torch

# A shell starts background jobs with Ctrl-C ignored, and what we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a GPU the kernels run in Triton's interpreter. Triton decides that once, when it is imported, and other tests
# import it too, by way of torch.
if find_spec("triton") is not None and not torch.cuda.is_available():
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRITON_INTERPRET", "1")
        for name in ("fused", "group_norm_silu"):
            importlib.import_module(f"kontext_fast.engine.kernels.{name}")


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
