"""What measured times cost: prices with a date, billing models, savings and when they pay. Knows nothing of torch."""

from __future__ import annotations

from typing import Literal, get_args

# Here, so that a command line can offer the choice without importing what computes with it.
Billing = Literal["by-use", "always-on", "reserved"]
BILLINGS: tuple[Billing, ...] = get_args(Billing)
