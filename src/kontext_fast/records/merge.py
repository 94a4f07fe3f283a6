"""Several benchmarks as one file of records, so that one report can hold a card's sweeps, peers and cold starts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import CompileCache, Record, ResultFile, StoredItem
from kontext_fast.records.store import ResultStore


def load_all(folders: Sequence[Path]) -> ResultFile:
    """The records of what a user named, at least one; of several merged, but the same folder counts once.

    Raises InvalidInput where one of them has no records, or a run is in two of them.
    """
    files = dict.fromkeys(ResultStore.find(folder).records_file.resolve() for folder in folders)
    results = [ResultStore.find(file).load() for file in files]
    return results[0] if len(results) == 1 else merge_results(results)


def merge_results(results: Sequence[ResultFile]) -> ResultFile:
    """All records of `results`, at least one, in the order in which they were created.

    Each block gets a number of its own, so that factors are still paired within blocks. A cell that one benchmark did
    not reach and another one measured counts as measured.
    Raises InvalidInput where a run is in two of them.
    """
    records: list[Record] = []
    blocks = 0
    for result in results:
        records += [record.model_copy(update={"round": record.round + blocks}) for record in result.records]
        blocks = max((record.round + 1 for record in records), default=0)
    _check_distinct(records)
    records = _without_cells_measured_elsewhere(records)
    # Stable, so that runs which began within the same second keep the order of their own file.
    records.sort(key=lambda record: record.created_at)
    return ResultFile(
        kontext_fast_version=_join(result.kontext_fast_version for result in results),
        command="; ".join(dict.fromkeys(result.command for result in results)),
        suite=_join(result.suite for result in results),
        suite_sha256=hashlib.sha256("\n".join(result.suite_sha256 for result in results).encode()).hexdigest(),
        seed=results[0].seed,
        items=_items(results),
        records=tuple(record.model_copy(update={"order": order}) for order, record in enumerate(records)),
    )


def _check_distinct(records: Iterable[Record]) -> None:
    seen: set[str] = set()
    for record in records:
        if record.run_id in seen:
            raise InvalidInput(f"The run {record.run_id} is in two folders of results; delete one of the copies.")
        seen.add(record.run_id)


def _without_cells_measured_elsewhere(records: Sequence[Record]) -> list[Record]:
    reached = {key for record in records if record.status != "not measured" for key in _keys(record)}
    return [
        record
        for record in records
        if record.status != "not measured" or not record.cells or not set(_keys(record)) <= reached
    ]


def _keys(record: Record) -> list[tuple[str, CompileCache, object]]:
    return [(record.preset, record.compile_cache, cell) for cell in record.cells]


def _items(results: Iterable[ResultFile]) -> tuple[StoredItem, ...]:
    """Each item once, with its image where one of the benchmarks kept it."""
    items: dict[str, StoredItem] = {}
    for result in results:
        for item in result.items:
            if item.id not in items or (items[item.id].image is None and item.image is not None):
                items[item.id] = item
    return tuple(items.values())


def _join(names: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(names))
