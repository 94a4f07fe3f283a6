"""The sentences of a report that depend on the numbers: what was found, and what was not measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from kontext_fast.records.names import is_peer
from kontext_fast.records.schema import BASELINE, CONTROL, Cell, Checkpoint, Workload
from kontext_fast.report import format as write
from kontext_fast.report.groups import Group
from kontext_fast.report.headline import Row
from kontext_fast.stats.claims import speed_verdict

TINY = (
    "The checkpoint tiny is a small model that has learned to edit a synthetic world of shapes. It says nothing about "
    "how good real Kontext images look."
)
RANDOM = (
    "The checkpoint random has the full architecture with random weights: speed and memory are real, "
    "image quality is not measured."
)

_MOST_NAMES = 3


def speed_finding(rows: Sequence[Row], limit: float | None = None) -> str:
    """The fastest preset that can be told apart from baseline, what the judge says of it, its fastest peer, and what
    failed.

    `limit` is the smallest difference that the A/A control allows to claim, as a fraction; None without a control.
    """
    compared = [row for row in rows if row.factor is not None and row.preset != CONTROL]
    failed = [row for row in rows if row.time is None]
    sentences = [_fastest(compared, rows, limit)] if compared else ["No preset could be compared with baseline."]
    if (peer := _fastest_of(filter(_of_a_peer, rows), limit)) is not None and peer is not fastest(rows, limit):
        sentences.append(f"Of the peers, {peer.preset} is fastest: {_claim(peer)}.")
    if failed:
        sentences.append(f"Without a time: {_those(failed)}.")
    return " ".join(sentences)


def _those(failed: Sequence[Row]) -> str:
    """By name where they are few, else by what happened; the table has them all."""
    if len(failed) <= _MOST_NAMES:
        return ", ".join(f"{row.preset} ({row.status})" for row in failed)
    kinds = Counter(row.status for row in failed)
    return f"{write.count(len(failed), 'preset')} ({', '.join(f'{n} {status}' for status, n in kinds.most_common())})"


def fastest(rows: Sequence[Row], limit: float | None) -> Row | None:
    """Of the presets that may be called faster than baseline the one with the largest factor; None where none may.

    A peer is it only where no preset of ours was compared.
    """
    own = [row for row in rows if not _of_a_peer(row)]
    compared = [row for row in own if row.factor is not None and row.preset != CONTROL]
    return _fastest_of(own if compared else rows, limit)


def _of_a_peer(row: Row) -> bool:
    return is_peer(row.preset)


def _fastest_of(rows: Iterable[Row], limit: float | None) -> Row | None:
    faster = [
        (row.factor.value, row)
        for row in rows
        if row.preset != CONTROL and row.factor is not None and speed_verdict(row.factor, limit or 0.0) == "faster"
    ]
    return max(faster, key=lambda one: one[0])[1] if faster else None


def _fastest(compared: Sequence[Row], rows: Sequence[Row], limit: float | None) -> str:
    best = fastest(rows, limit)
    if best is not None:
        return f"{best.preset} is {_claim(best)}. " + _judged(best, rows)
    if all(row.factor and row.factor.interval is None for row in compared):
        return "One round gives factors without intervals, so no preset can be called faster than baseline yet."
    beyond = "" if limit is None else f" and the {100 * limit:.1f} % by which baseline may differ from itself here"
    return f"No preset is faster than baseline beyond its 95 % interval{beyond}."


def _claim(row: Row) -> str:
    """Of a row that may be called faster, which has a factor with an interval."""
    assert row.factor is not None
    rounds = write.count(row.factor.n, "round")
    return f"{write.factor(row.factor)} as fast as baseline (95 % interval {write.factor_range(row.factor)}, {rounds})"


def _judged(best: Row, rows: Sequence[Row]) -> str:
    if best.accepted is None:
        return "What that does to its images is not measured."
    baseline = next((row.accepted for row in rows if row.preset == BASELINE and row.accepted), None)
    against = f", and {write.percent(baseline.value)} of baseline's" if baseline else ""
    items = write.count(best.accepted.n, "item")
    return f"The judge accepts {write.percent(best.accepted.value)} of its edits{against} ({items})."


def not_measured(group: Group, rows: Sequence[Row], unpriced: str | None) -> tuple[str, ...]:
    """What a reader might look for in this group and will not find, one clause each.

    `unpriced` is why nothing of the group has a price, None where it has one.
    """
    missing = [f"{row.preset}: {row.reason or row.status}{_cells_of(group, row)}" for row in rows if row.time is None]
    measured = [row for row in rows if row.time is not None]
    if measured and all(row.time and row.time.mean.n < 2 for row in measured):
        missing.append("the spread between processes: each preset ran in one process, so there are no intervals")
    if measured and all(row.factor is None for row in measured):
        missing.append("factors against baseline")
    if _is_random(group.checkpoint):
        missing.append("image quality: the weights are random")
    else:
        unjudged = [row.preset for row in measured if row.accepted is None]
        if unjudged:
            missing.append(f"the judge's acceptance of {', '.join(unjudged)}")
        missing.append("image quality beyond the judge's verdict")
    if measured and all(row.memory.allocated_peak_bytes is None for row in measured):
        missing.append("memory of a GPU")
    if measured and all(row.energy is None for row in measured):
        missing.append("energy")
    if unpriced:
        missing.append(f"cost: {unpriced}")
    return tuple(missing)


def _cells_of(group: Group, row: Row) -> str:
    """What it should have measured, where no group with a workload says so."""
    if group.workload is not None:
        return ""
    cells = dict.fromkeys(cell for record in group.failures_of(row.preset) for cell in record.cells)
    return f" ({'; '.join(map(cell_name, cells))})" if cells else ""


def cell_name(cell: Cell) -> str:
    """`edit 1024x1024, 28 steps`, with the batch where it is more than one image."""
    batch = f", batch {cell.batch}" if cell.batch > 1 else ""
    return f"{cell.mode} {cell.size}, {write.count(cell.steps, 'step')}{batch}"


def checkpoint_caution(checkpoint: Checkpoint | None) -> str | None:
    """What a checkpoint cannot tell, as a sentence."""
    if checkpoint is None:
        return None
    return {"tiny": TINY, "random": RANDOM}.get(checkpoint.kind)


def _is_random(checkpoint: Checkpoint | None) -> bool:
    return checkpoint is not None and checkpoint.kind == "random"


def group_name(group: Group) -> str:
    """The name of its workload, and of the compile cache where that was part of the experiment."""
    cache = "" if group.compile_cache == "user" else f", {group.compile_cache} compile cache"
    return workload_name(group.workload) + cache


def workload_name(workload: Workload | None) -> str:
    """`edit, 1024x1024, 28 steps`, with what differs from the usual added."""
    if workload is None:
        return "nothing was measured"
    parts = [workload.mode, f"{workload.width}x{workload.height}", write.count(workload.steps, "step")]
    if workload.batch > 1:
        parts.append(f"batch {workload.batch}")
    if workload.true_cfg > 1:
        parts.append(f"true CFG {workload.true_cfg:g}")
    return ", ".join(parts)
