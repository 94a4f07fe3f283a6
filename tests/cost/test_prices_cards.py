from __future__ import annotations

import pytest

from kontext_fast.cost.prices import CARDS, card_of


@pytest.mark.parametrize(
    ("device", "card"),
    [
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("NVIDIA L40S", "L40S"),
        (" nvidia  l40s ", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
    ],
)
def test_device_names_are_cards(device: str, card: str) -> None:
    assert card_of(device) == card
    assert card in CARDS


@pytest.mark.parametrize(
    "device",
    [
        None,
        "",
        "Intel(R) Xeon(R) Platinum 8480+",
        "NVIDIA H100",
        "NVIDIA H100 PCIe MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA L40",
        "NVIDIA GH200 480GB",
    ],
)
def test_unknown_device_is_no_card(device: str | None) -> None:
    assert card_of(device) is None
