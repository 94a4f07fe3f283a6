"""Which machine a run's numbers hold for, read from the facts that the run stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def machine_name(environment: Mapping[str, Any]) -> str | None:
    """The name of the card that ran, or of the CPU where no card did; None where the run ended before it knew."""
    gpu = environment.get("gpu")
    name = gpu.get("name") if isinstance(gpu, Mapping) else environment.get("cpu")
    return name if isinstance(name, str) and name else None
