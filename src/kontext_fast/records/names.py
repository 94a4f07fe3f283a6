"""Names that records carry: ablations of a preset, peers, and the machine that a run was made on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

ONLY: Final = "-only-"
WITHOUT: Final = "-without-"


@dataclass(frozen=True)
class Ablation:
    """A preset's name taken apart."""

    preset: str
    kind: str
    """ONLY or WITHOUT."""
    optimization: str


def parse_ablation(name: str) -> Ablation | None:
    """What the name of an ablation means; None for the name of any other preset."""
    for kind in (ONLY, WITHOUT):
        preset, found, optimization = name.partition(kind)
        if found and preset and optimization:
            return Ablation(preset, kind, optimization)
    return None


PREFIX: Final = "peer:"


def is_peer(preset: str) -> bool:
    """Whether a record's preset is a peer; no preset of ours has such a name."""
    return preset.startswith(PREFIX)


def machine_name(environment: Mapping[str, Any]) -> str | None:
    """The name of the card that ran, or of the CPU where no card did; None where the run ended before it knew."""
    gpu = environment.get("gpu")
    name = gpu.get("name") if isinstance(gpu, Mapping) else environment.get("cpu")
    return name if isinstance(name, str) and name else None


def machine_identity(environment: Mapping[str, Any]) -> str | None:
    """Tells this very machine from another one of the same name: by its card, or by the host where no card ran.

    None where the run ended before it knew. Blocks of a benchmark never span two identities.
    """
    gpu = environment.get("gpu")
    identity = gpu.get("uuid_sha256") if isinstance(gpu, Mapping) else environment.get("host_sha256")
    return identity if isinstance(identity, str) and identity else machine_name(environment)


def ran_on_gpu(environment: Mapping[str, Any]) -> bool:
    """Whether a card did the work; False also where the run ended before it knew."""
    return isinstance(environment.get("gpu"), Mapping)
