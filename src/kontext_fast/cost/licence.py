"""What a reader of any cost must know before he relies on it: what the weights may be used for."""

from __future__ import annotations

from kontext_fast.cost.prices import PriceTable


def licence_notes(table: PriceTable) -> tuple[str, ...]:
    """One sentence per licence row, with its day."""
    return tuple(
        f"{row.product}: {row.terms} (as of {row.day})" for row in table.of_kind("licence") if row.terms is not None
    )
