"""What measured times cost: prices with a date, billing models, savings and when they pay. Knows nothing of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from kontext_fast.cost.payback import savings

__all__ = ["BILLINGS", "Billing", "savings"]

# Here, so that a command line can offer the choice without importing what computes with it.
Billing = Literal["by-use", "always-on", "reserved"]
BILLINGS: tuple[Billing, ...] = get_args(Billing)


def __getattr__(name: str) -> Any:
    if name != "savings":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kontext_fast.cost.payback import savings

    return savings
