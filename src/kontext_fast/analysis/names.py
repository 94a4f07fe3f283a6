"""Names of presets, cells, workloads and groups as tables and charts show them."""

from __future__ import annotations

import re

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.groups import Group
from kontext_fast.records.names import PEER_PREFIX
from kontext_fast.records.schema import BASELINE, Cell, Workload

_KNOWN = {
    BASELINE: "diffusers (baseline)",
    f"{PEER_PREFIX}compiled": "torch.compile",
    f"{PEER_PREFIX}compiled-float8": "torch.compile, float8",
}
_STEPS = re.compile(rf"{PEER_PREFIX}steps-(\d+)")


def plain_name(preset: str) -> str:
    """`8 plain steps` for `peer:steps-8`; a preset of ours keeps its name."""
    if steps := _STEPS.fullmatch(preset):
        return f"{steps[1]} plain steps"
    return _KNOWN.get(preset) or preset.removeprefix(PEER_PREFIX)


def cell_name(cell: Cell) -> str:
    """`edit 1024x1024, 28 steps`, with the batch where it is more than one image."""
    batch = f", batch {cell.batch}" if cell.batch > 1 else ""
    return f"{cell.mode} {cell.size}, {fmt.count(cell.steps, 'step')}{batch}"


def group_name(group: Group) -> str:
    """The name of its workload, and of the compile cache where that was part of the experiment."""
    cache = "" if group.compile_cache == "user" else f", {group.compile_cache} compile cache"
    return workload_name(group.workload) + cache


def workload_name(workload: Workload | None) -> str:
    """`edit, 1024x1024, 28 steps`, with what differs from the usual added."""
    if workload is None:
        return "nothing was measured"
    parts = [workload.mode, f"{workload.width}x{workload.height}", fmt.count(workload.steps, "step")]
    if workload.batch > 1:
        parts.append(f"batch {workload.batch}")
    if workload.true_cfg > 1:
        parts.append(f"true CFG {workload.true_cfg:g}")
    return ", ".join(parts)
