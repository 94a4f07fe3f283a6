"""What names in records mean: ablations of a preset, peers, the machine of a run, and kinds of checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

ONLY: Final = "-only-"
WITHOUT: Final = "-without-"


@dataclass(frozen=True)
class Ablation:
    """What the name of an ablation says."""

    preset: str
    kind: str
    """ONLY or WITHOUT."""
    optimization: str


def parse_ablation(name: str) -> Ablation | None:
    """What the name of an ablation means; None for the name of any other preset."""
    for kind in (ONLY, WITHOUT):
        preset, separator, optimization = name.partition(kind)
        if separator and preset and optimization:
            return Ablation(preset, kind, optimization)
    return None


PEER_PREFIX: Final = "peer:"


def is_peer(preset: str) -> bool:
    """Whether a record's preset is a peer; no preset of ours has such a name."""
    return preset.startswith(PEER_PREFIX)


def machine_name(environment: Mapping[str, Any]) -> str | None:
    """The name of the GPU that ran, or of the CPU where none did; None where the run ended before it was known."""
    gpu = environment.get("gpu")
    name = gpu.get("name") if isinstance(gpu, Mapping) else environment.get("cpu")
    return name if isinstance(name, str) and name else None


def machine_identity(environment: Mapping[str, Any]) -> str | None:
    """Tells a machine from others of the same name: by its GPU, or by the host where no GPU ran.

    None where the run ended before it was known. Blocks of a benchmark never span two identities.
    """
    gpu = environment.get("gpu")
    identity = gpu.get("uuid_sha256") if isinstance(gpu, Mapping) else environment.get("host_sha256")
    return identity if isinstance(identity, str) and identity else machine_name(environment)


_MAKER = re.compile(r"^(?:NVIDIA|AMD|Intel(?:\(R\))?)\s+(?:GeForce\s+)?", re.IGNORECASE)
_VARIANT = re.compile(r"[\s-]+(?:\d+ ?GB|SXM\d?|PCIe|HBM\d?e?)\b.*$", re.IGNORECASE)


def short_machine(name: str) -> str:
    """The machine as people call it: `H100` for `NVIDIA H100 80GB HBM3`, `RTX 4090` for `NVIDIA GeForce RTX 4090`."""
    return _VARIANT.sub("", _MAKER.sub("", name.strip())) or name


def slugs_of(machines: Sequence[str | None]) -> list[str]:
    """A part of a file name for each machine, `h100`; its whole name where two would have the same."""
    short = [_slug(short_machine(name)) if name else "unknown" for name in machines]
    return [
        brief if short.count(brief) == 1 or name is None else _slug(_MAKER.sub("", name))
        for brief, name in zip(short, machines, strict=True)
    ]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "unknown"


def ran_on_gpu(environment: Mapping[str, Any]) -> bool:
    """Whether a GPU ran; False, too, where the run ended before that was known."""
    return isinstance(environment.get("gpu"), Mapping)


@dataclass(frozen=True, kw_only=True)
class CheckpointKind:
    """What a kind of checkpoint means for whoever measures, judges or reports it; by default, trained weights."""

    random_weights: bool = False
    """Speed and memory are real, but images are noise: neither quality nor a decision by data means anything."""
    has_judge: bool = False
    """It has learned the shapes world, of which a judge and a CLIP pair know every right answer."""
    caution: str | None = None
    """What its results cannot tell, as a sentence for people."""


SPECIAL_KINDS: Final[Mapping[str, CheckpointKind]] = {
    "tiny": CheckpointKind(
        has_judge=True,
        caution="The checkpoint tiny is a small model that has learned to edit a synthetic world of shapes. It says "
        "nothing about how good real Kontext images look.",
    ),
    "random": CheckpointKind(
        random_weights=True,
        caution="The checkpoint random has the full architecture with random weights: speed and memory are real, "
        "image quality is not measured.",
    ),
}
"""Kinds of checkpoint that are not simply trained weights from somewhere."""


def kind_facts(kind: str) -> CheckpointKind:
    """What the kind that records call `kind` means."""
    return SPECIAL_KINDS.get(kind, CheckpointKind())
