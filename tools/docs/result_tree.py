"""Everything that a project publishes: the records in its folder of results, from which its documents are rendered."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from kontext_fast.records.merge import merge_results
from kontext_fast.records.schema import BASELINE, ResultFile
from kontext_fast.records.store import RECORDS_NAME, ResultStore
from kontext_fast.report.output.publish import Stores


@dataclass(frozen=True)
class Published:
    """Result folders, wherever below `folder` they are."""

    folder: Path
    stores: tuple[ResultStore, ...]
    speed: ResultFile | None
    """All benchmarks of presets as one; None where there is none."""
    verifications: tuple[tuple[ResultStore, ResultFile], ...]
    """Oldest first."""
    variants: tuple[tuple[ResultStore, ResultFile], ...] = ()
    """Benchmarks of nothing but variants of presets, as `turbo(attention=flash3)`: they have tables of their own, so
    that what leads the documents is what a user gets by a preset's name."""

    @property
    def day(self) -> date:
        """Of the newest record: prices are read as of it, so that the same records give the same documents."""
        files = [result for _, result in (*self.verifications, *self.variants)] + ([self.speed] if self.speed else [])
        days = [datetime.fromisoformat(record.created_at).date() for result in files for record in result.records]
        return max(days, default=datetime.now(UTC).date())

    @property
    def places(self) -> tuple[str, ...]:
        """The files of the benchmarks' records, from the project's folder on."""
        judged = [store for store, _ in self.verifications]
        files = [store.records_file for store in self.stores if store not in judged]
        return tuple(file.relative_to(self.folder.parent).as_posix() for file in files)

    @property
    def images(self) -> Stores:
        """The images of all folders."""
        return Stores(self.stores)


def find_published(folder: Path) -> Published:
    """Read all records below `folder`. Raises InvalidInput for a file that cannot be read, and for copies of runs."""
    stores = tuple(ResultStore.find(path) for path in sorted(folder.glob(f"**/{RECORDS_NAME}")))
    read = [(store, store.load()) for store in stores]
    benches = [(store, result) for store, result in read if result.verification is None]
    variants = [(store, result) for store, result in benches if _has_variants_alone(result)]
    presets = [result for _, result in benches if not _has_variants_alone(result)]
    verifications = [(store, result) for store, result in read if result.verification is not None]
    verifications.sort(key=lambda stored: max((record.created_at for record in stored[1].records), default=""))
    return Published(
        folder=folder,
        stores=stores,
        speed=merge_results(presets) if presets else None,
        verifications=tuple(verifications),
        variants=tuple(variants),
    )


def _has_variants_alone(result: ResultFile) -> bool:
    names = {record.preset for record in result.records} - {BASELINE}
    return bool(names) and all("(" in name for name in names)
