"""Whose weights a transformer has, by a few rows of every matrix: in a fraction of a second at full size.

Numbers are compared as bfloat16, so that a checkpoint is the same whichever precision it was loaded in. Matrices are
told from everything else, since they are what a LoRA changes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

_ROWS = 4
"""Of each matrix: the first, the last, and those between at equal distances. A change of all rows changes these."""


class WeightIdentity(BaseModel):
    """Hashes of sampled numbers. Pure, frozen data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vectors: str
    """Of all biases and scales of norms, and of the names and shapes of everything. A LoRA leaves them as they are."""
    matrices: str
    """Of some rows of every matrix."""

    def differs(self, other: WeightIdentity) -> bool:
        """Whether the model itself is another one, not only a LoRA merged into it."""
        return self.vectors != other.vectors


def identity_of(transformer: Any) -> WeightIdentity:
    """The identity of a transformer as its own parameters are, before anything was fused or rounded."""
    vectors: list[Any] = []
    matrices: list[Any] = []
    names = hashlib.sha256()
    for name, parameter in sorted(transformer.named_parameters()):
        names.update(f"{name} {tuple(parameter.shape)}\n".encode())
        (vectors if parameter.dim() < 2 else matrices).append(_sample(parameter.data))
    return WeightIdentity(vectors=_digest(vectors, names.digest()), matrices=_digest(matrices, b""))


def _sample(values: Any) -> Any:
    """[n] some numbers, on the device where they are."""
    if values.dim() < 2:
        return values.reshape(-1)
    last = len(values) - 1
    return values[sorted({round(last * part / (_ROWS - 1)) for part in range(_ROWS)})].reshape(-1)


def _digest(samples: Iterable[Any], seed: bytes) -> str:
    import torch

    by_device: dict[Any, list[tuple[int, Any]]] = defaultdict(list)
    for index, sample in enumerate(samples):
        floating = sample.is_floating_point()
        bits = sample.to(torch.bfloat16) if floating else sample
        by_device[sample.device].append((index, bits.contiguous().view(torch.uint8)))
    on_host: dict[int, Any] = {}
    for of_device in by_device.values():
        # One transfer for all of a device: hundreds of small ones would take longer than everything else.
        together = torch.cat([bits for _, bits in of_device]).cpu()
        parts = torch.split_with_sizes(together, [len(bits) for _, bits in of_device])
        on_host.update(zip((index for index, _ in of_device), parts, strict=True))
    digest = hashlib.sha256(seed)
    for index in sorted(on_host):
        digest.update(on_host[index].numpy().tobytes())
    return digest.hexdigest()[:32]
