"""Which workers a server starts: one per card and group of presets that share weights. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.optimizations.presets import PEAK_GIB, Preset, find_preset
from kontext_fast.optimizations.switching import sharing_groups
from kontext_fast.pipeline.hub import require_kontext_dev
from kontext_fast.pipeline.load import KONTEXT_DEV, is_full_size, kind_of
from kontext_fast.server.settings import ServerSettings


@dataclass(frozen=True)
class WorkerPlan:
    """What one worker is for."""

    name: str
    """The device, and the presets where several workers share it."""
    device: str
    presets: tuple[str, ...]


def plan_workers(settings: ServerSettings) -> tuple[WorkerPlan, ...]:
    """Raises InvalidInput for unknown presets or checkpoints, Refused where a card has no room for all workers."""
    presets = [find_preset(name) for name in settings.presets]
    groups = sharing_groups(presets, architecture_only=kind_of(settings.checkpoint).random_weights)
    devices = settings.devices or default_devices()
    if len(groups) > 1 and is_full_size(settings.checkpoint):
        _require_room(groups, devices)
    return tuple(
        WorkerPlan(
            name=device if len(groups) == 1 else f"{device} ({', '.join(preset.name for preset in group)})",
            device=device,
            presets=tuple(preset.name for preset in group),
        )
        for device in devices
        for group in groups
    )


def default_devices() -> tuple[str, ...]:
    """Every GPU that this process may use, or the CPU."""
    count = len(_gpu_memory_gib())
    return tuple(f"cuda:{index}" for index in range(count)) or ("cpu",)


def default_checkpoint() -> str:
    """FLUX.1-Kontext-dev where there is a GPU. Raises InvalidInput elsewhere: nobody is served by `tiny` unasked.

    Raises CheckpointUnavailable where the weights are neither in the local cache nor to be had.
    """
    if default_devices() == ("cpu",):
        raise InvalidInput(
            "There is no GPU here; name a checkpoint, for example --checkpoint tiny, a toy model that runs anywhere."
        )
    require_kontext_dev()
    return KONTEXT_DEV


def _require_room(groups: list[tuple[Preset, ...]], devices: tuple[str, ...]) -> None:
    needed = sum(max(PEAK_GIB.get(preset.name, max(PEAK_GIB.values())) for preset in group) for group in groups)
    names = "; ".join(", ".join(preset.name for preset in group) for group in groups)
    memory = _gpu_memory_gib()
    for device in devices:
        index = int(device.partition(":")[2] or 0)
        if device.startswith("cuda") and index < len(memory) and memory[index] < needed:
            raise Refused(
                f"These presets do not share weights ({names}), so each group needs a worker of its own, together "
                f"{needed} GiB of GPU memory, and {device} has {memory[index]:.0f}; allow presets of one group."
            )


def _gpu_memory_gib() -> list[float]:
    """The memory of every GPU that CUDA_VISIBLE_DEVICES leaves, in its order; empty where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = [str(index) for index in range(count)] if visible is None else visible.split(",")
        return [_memory_gib(name.strip()) for name in names if name.strip() not in ("", "-1")]
    except pynvml.NVMLError:
        return []


def _memory_gib(name: str) -> float:
    """The memory of the GPU with this index or identity."""
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
    return float(pynvml.nvmlDeviceGetMemoryInfo(handle).total) / 2**30
