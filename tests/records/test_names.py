"""What names in records mean."""

from __future__ import annotations

import pytest

from kontext_fast.records.names import (
    ONLY,
    WITHOUT,
    Ablation,
    CheckpointKind,
    is_peer,
    kind_facts,
    machine_identity,
    machine_name,
    parse_ablation,
    ran_on_gpu,
    short_machine,
    slugs_of,
)

H100 = {"gpu": {"name": "NVIDIA H100 80GB HBM3", "uuid_sha256": "ab"}, "cpu": "A CPU", "host_sha256": "cd"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fast-without-engine", Ablation("fast", WITHOUT, "engine")),
        ("fast-only-first-only-cache", Ablation("fast", ONLY, "first-only-cache")),
        ("fast", None),
        ("-only-engine", None),
        ("fast-without-", None),
    ],
)
def test_ablation_is_what_its_name_says(name: str, expected: Ablation | None) -> None:
    assert parse_ablation(name) == expected


def test_machine_is_its_gpu_or_else_its_cpu() -> None:
    assert (machine_name(H100), machine_identity(H100), ran_on_gpu(H100)) == ("NVIDIA H100 80GB HBM3", "ab", True)
    without = {"cpu": "A CPU", "host_sha256": "cd"}
    assert (machine_name(without), machine_identity(without), ran_on_gpu(without)) == ("A CPU", "cd", False)
    assert (machine_name({"gpu": {}, "cpu": "A CPU"}), machine_name({"cpu": ""}), machine_name({"cpu": 3})) == (
        None,
    ) * 3
    for unknown in ({}, {"uuid_sha256": ""}):
        assert machine_identity({"gpu": {"name": "a card", **unknown}, "host_sha256": "cd"}) == "a card"


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("AMD Instinct MI300X", "Instinct MI300X"),
        ("  H200  ", "H200"),
        ("NVIDIA ", "NVIDIA"),
    ],
)
def test_machine_is_called_as_people_call_it(name: str, short: str) -> None:
    assert short_machine(name) == short


def test_files_of_two_machines_have_two_names() -> None:
    assert slugs_of(["NVIDIA H100 80GB HBM3", None, "A (CPU) 9000"]) == ["h100", "unknown", "a_cpu_9000"]
    both = ["NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", None, None, "???"]
    assert slugs_of(both) == ["h100_80gb_hbm3", "h100_pcie", "unknown", "unknown", "unknown"]


def test_kinds_of_checkpoint_and_peers() -> None:
    assert kind_facts("tiny").has_judge
    assert kind_facts("random").random_weights
    assert kind_facts("folder") == CheckpointKind()
    assert is_peer("peer:compiled")
    assert not is_peer("compile")
