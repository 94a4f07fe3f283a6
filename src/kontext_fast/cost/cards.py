"""Which card a device name stands for. H100 PCIe, SXM and NVL are three products, and so are an A100's memory sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

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
    name = re.sub(r"^NVIDIA\s+", "", device_name.strip(), flags=re.IGNORECASE)
    return _CARD_OF.get(name.lower())


def slug(card: str) -> str:
    """The card in a file name: `h100_pcie`."""
    return re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_")
