"""Which machine a run's numbers hold for, read from the facts that the run stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
