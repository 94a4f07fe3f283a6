"""What measured times cost: prices with a date, billing models, savings and when they pay. Knows nothing of torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal, get_args

# Here, so that a command line can offer the choice without importing what computes with it.
Billing = Literal["by-use", "always-on", "reserved"]
BILLINGS: tuple[Billing, ...] = get_args(Billing)


def __getattr__(name: str) -> Any:
    """`kontext_fast.cost.savings`, without importing what computes with it before."""
    if name != "savings":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.payback").savings


def __dir__() -> list[str]:
    return sorted({*globals(), "savings"})
