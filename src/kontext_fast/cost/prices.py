"""The price table: dated rows from `prices.toml` or a file of the user's own, and the row that prices a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kontext_fast.errors import InvalidInput
from kontext_fast.toml_lines import TOMLDecodeError, parse_toml
from kontext_fast.validation import dotted, first_mistake

CARDS: Final[Mapping[str, str]] = {
    "H100 PCIe": "H100 PCIe",
    "H100 SXM": "H100 80GB HBM3",
    "H100 NVL": "H100 NVL",
    "H200": "H200",
    "H200 NVL": "H200 NVL",
    "A100 PCIe 40GB": "A100-PCIE-40GB",
    "A100 PCIe 80GB": "A100 80GB PCIe",
    "A100 SXM 40GB": "A100-SXM4-40GB",
    "A100 SXM 80GB": "A100-SXM4-80GB",
    "L40S": "L40S",
    "RTX 4090": "GeForce RTX 4090",
}
"""Every card that a price may be for, with the name that torch and NVML print for it, without the maker's.

`H200` is the SXM module, which the driver names without a suffix.
"""

_CARD_OF: Final = {device.lower(): card for card, device in CARDS.items()}


def card_of(device_name: str | None) -> str | None:
    """The card that `device_name` (of torch or NVML) is, None for a CPU and for cards that no price is kept for.

    A slice of a card (MIG) is not the card, and so has no price.
    """
    if device_name is None:
        return None
    return _CARD_OF.get(re.sub(r"^nvidia\s+", "", device_name.strip().lower()))


Kind = Literal["on-demand", "spot", "reserved", "api", "licence"]

STALE_AFTER_DAYS: Final = 90

USER: Final = "user"
"""Id of a price that was given as a number."""

_RENTED: Final = ("on-demand", "spot", "reserved")
_NEEDS: Final[dict[Kind, tuple[str, ...]]] = {
    "on-demand": ("card", "memory_gib", "usd_per_hour"),
    "spot": ("card", "memory_gib", "usd_per_hour"),
    "reserved": ("card", "memory_gib", "usd_per_hour"),
    "api": ("usd_per_image",),
    "licence": ("terms",),
}


HIGHEST_USD = 1e6
"""Of an hour of any machine."""


class Price(BaseModel):
    """One row. Which of the optional fields it has follows from its kind."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: str = Field(min_length=1)
    provider: str
    product: str
    region: str
    kind: Kind
    source: str = Field(min_length=1)
    day: date
    """The day on which the price held."""
    card: str | None = None
    memory_gib: float | None = Field(default=None, gt=0)
    """Of one card."""
    count: int = Field(default=1, ge=1)
    """GPUs that are only sold together."""
    usd_per_hour: float | None = Field(default=None, gt=0, le=HIGHEST_USD)
    """Of all `count` GPUs."""
    usd_per_image: float | None = Field(default=None, gt=0)
    usd_per_month: float | None = Field(default=None, ge=0)
    """Of a licence, where it has a fixed price."""
    terms: str | None = None

    @property
    def usd_per_gpu_hour(self) -> float:
        """Raises InvalidInput for a row that is not of a rented GPU."""
        if self.usd_per_hour is None:
            raise InvalidInput(f"Price {self.id} is of kind {self.kind}, not of a GPU: choose a GPU's price.")
        return self.usd_per_hour / self.count

    def is_stale(self, today: date) -> bool:
        return (today - self.day).days > STALE_AFTER_DAYS

    def dated(self, today: date) -> str:
        """Id and day as they stand beside every number: `runpod-h200, 2026-10-01`, with `(stale)` where it is."""
        return f"{self.id}, {self.day}{' (stale)' if self.is_stale(today) else ''}"


@dataclass(frozen=True)
class PriceTable:
    """Rows in the order of the file; `own` are the ids that the user's file brought."""

    rows: tuple[Price, ...]
    own: frozenset[str] = frozenset()

    def of_kind(self, kind: Kind) -> tuple[Price, ...]:
        return tuple(row for row in self.rows if row.kind == kind)

    def of_card(self, card: str | None, kind: Kind) -> tuple[Price, ...]:
        """Cheapest GPU first; no row where the card is unknown."""
        rows = [row for row in self.rows if card is not None and row.card == card and row.kind == kind]
        return tuple(sorted(rows, key=lambda row: (row.usd_per_gpu_hour, row.id)))

    def typical(self, card: str | None, kind: Kind) -> Price | None:
        """The row in the middle, the cheaper one of two, None where there is no row.

        The user's own rows where there are any of this card, and GPUs that are sold singly where there are any.
        """
        rows = self.of_card(card, kind)
        rows = tuple(row for row in rows if row.id in self.own) or rows
        rows = tuple(row for row in rows if row.count == 1) or rows
        return rows[(len(rows) - 1) // 2] if rows else None

    def apis(self) -> tuple[Price, ...]:
        """What one image costs elsewhere, cheapest first: of several services at one price the newest row."""
        newest: dict[float, Price] = {}
        for row in self.of_kind("api"):
            usd = row.usd_per_image
            if usd is not None and (usd not in newest or row.day > newest[usd].day):
                newest[usd] = row
        return tuple(newest[usd] for usd in sorted(newest))

    def licence_notes(self) -> tuple[str, ...]:
        """What the weights may be used for: one sentence per licence, with its day."""
        return tuple(f"{row.product}: {row.terms} (as of {row.day})" for row in self.of_kind("licence"))

    def named(self, price_id: str) -> Price:
        """Raises InvalidInput for an id that is not in the table."""
        for row in self.rows:
            if row.id == price_id:
                return row
        known = ", ".join(row.id for row in self.rows if row.kind in _RENTED)
        raise InvalidInput(f"There is no price {price_id}: give dollars per GPU-hour, or one of {known}.")


def load_prices(own: Path | None = None) -> PriceTable:
    """The table of the package with the rows of the user's file laid over it: the same id replaces, others are added.

    Raises InvalidInput, naming the row, for a file that is not a price table.
    """
    shipped = _parse(files(__package__).joinpath("prices.toml").read_text(encoding="utf-8"), "prices.toml")
    if own is None:
        return PriceTable(shipped)
    try:
        text = own.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{own} cannot be read ({error}): name a TOML file with [[price]] rows.") from error
    theirs = _parse(text, str(own))
    ids = frozenset(row.id for row in theirs)
    return PriceTable((*theirs, *(row for row in shipped if row.id not in ids)), ids)


def user_price(text: str, *, billing_kind: Kind, today: date) -> Price | None:
    """The price that a number stands for, in dollars per hour of one GPU; None where `text` is not a number.

    Raises InvalidInput for a number that is no price.
    """
    try:
        usd = float(text)
    except ValueError:
        return None
    if not 0 < usd <= HIGHEST_USD:
        raise InvalidInput(f"{text} is not a price: give dollars per GPU-hour above 0, such as 2.28.")
    return Price(
        id=USER,
        provider=USER,
        product="as measured",
        region="not stated",
        kind=billing_kind,
        source="given on the command line",
        day=today,
        usd_per_hour=usd,
    )


def _parse(text: str, name: str) -> tuple[Price, ...]:
    try:
        data = parse_toml(text)
    except TOMLDecodeError as error:
        raise InvalidInput(f"{name} is not TOML ({error}): correct it.") from None
    rows = data.get("price")
    if not isinstance(rows, list) or not rows or set(data) != {"price"}:
        raise InvalidInput(f"{name} is not a price table: it holds [[price]] rows and nothing else.")
    prices = tuple(_row(raw, number, name) for number, raw in enumerate(rows, 1))
    ids = [price.id for price in prices]
    for price_id in ids:
        if ids.count(price_id) > 1:
            raise InvalidInput(f"Price {price_id} stands twice in {name}: give every row its own id.")
    return prices


def _row(raw: Any, number: int, name: str) -> Price:
    label = f"{raw['id']}" if isinstance(raw, dict) and isinstance(raw.get("id"), str) else f"number {number}"

    def wrong(what: str) -> InvalidInput:
        return InvalidInput(f"Price {label} in {name} is not valid ({what}): correct that row.")

    try:
        price = Price.model_validate(raw)
    except ValidationError as error:
        location, message = first_mistake(error)
        raise wrong(f"{dotted(location) or 'row'}: {message}") from None
    if price.id == USER:
        raise wrong(f"the id {USER} is kept for prices given as a number")
    missing = [field for field in _NEEDS[price.kind] if getattr(price, field) is None]
    if missing:
        raise wrong(f"{price.kind} needs {', '.join(missing)}")
    if price.card is not None and price.card not in CARDS:
        raise wrong(f"card {price.card!r} is not one of {', '.join(CARDS)}")
    return price
