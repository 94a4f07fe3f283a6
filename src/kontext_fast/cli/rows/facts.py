"""A Parquet file with a row of facts for each edit of a run: how it was made, its seconds, or why it was not.

While a run goes on, every process that edits writes the facts of an image as a line of a file of its own, just before
the image appears under its name: whatever is killed when, each image that is there has its facts. The end of a run, or
the next run, makes one Parquet file of them.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kontext_fast.cli.rows.manifest import BadRow
from kontext_fast.datasets.tables import TABLES
from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.pipeline.images import read_origin
from kontext_fast.records.addresses import Lines, is_address, is_elsewhere, look_again, place, read
from kontext_fast.records.lock import locked_folder
from kontext_fast.records.store import require_folder_for, write_atomically

if TYPE_CHECKING:
    from kontext_fast.cli.session import ImageJob, Setup

Facts = Mapping[str, Any]

_LINES: Final[dict[Path, Lines]] = {}
"""Of this process, by the folder elsewhere that they are in."""

COLUMNS: Final[Mapping[str, str]] = {
    "row": "int64",
    "input": "string",
    "instruction": "string",
    "output": "string",
    "checkpoint": "string",
    "preset": "string",
    "lora": "string",
    "steps": "int64",
    "guidance": "float64",
    "negative": "string",
    "true_cfg": "float64",
    "seed": "int64",
    "width": "int64",
    "height": "int64",
    "computed_steps": "int64",
    "seconds": "float64",
    "error": "string",
}
"""Columns with their Arrow types; `output` is relative to the file. What is not known, or does not apply, is null."""


def facts_of(job: ImageJob, setup: Setup, *, image: Facts | None = None, error: str | None = None) -> Facts:
    """What is recorded of `job`: of the `image` that was made of it, as `--json` has it, too, or of the `error` that
    kept it from being made."""
    asked = job.asked
    facts: dict[str, Any] = {
        "row": job.row,
        "input": None if job.source is None else str(job.source),
        "instruction": asked.instruction,
        "output": str(job.file.path),
        "checkpoint": setup.checkpoint if image is None else image["checkpoint"],
        "preset": setup.preset,
        "lora": ", ".join(setup.lora_names) or None,
        "steps": asked.steps,
        "guidance": asked.guidance,
        "negative": asked.negative,
        "true_cfg": asked.true_cfg,
        "seed": asked.seed,
        "error": error,
    }
    if image is not None:
        kinds = image["step_kinds"]
        facts |= {"seed": image["seed"], "width": image["size"]["width"], "height": image["size"]["height"]}
        facts |= {"computed_steps": sum(kind == "full" for kind in kinds), "seconds": image["seconds"], "image": image}
    return facts


@dataclass(frozen=True)
class FactsFile:
    """A Parquet file of facts, and the lines that are not in it yet.

    Raises InvalidInput on creation where it cannot be written there, and Refused where a package is missing.
    """

    path: Path

    def __post_init__(self) -> None:
        if self.path.suffix.lower() != ".parquet":
            raise InvalidInput(f"{self.path} does not end in .parquet; give a name that does.")
        if find_spec("pyarrow") is None:
            raise Refused(f"Writing {self.path} needs the package pyarrow; run `{TABLES}`.")
        require_folder_for(self.path)

    @property
    def parts(self) -> Path:
        """The folder of the lines that are not in the Parquet file yet."""
        return self.path.with_name(f".{self.path.name}.parts")

    def record(self, facts: Facts) -> None:
        """Append `facts` to the lines of this process; they survive it."""
        output = str(facts["output"])
        line = json.dumps({**facts, "output": self._relative(output), "path": output}).encode() + b"\n"
        if is_elsewhere(self.path):
            _LINES.setdefault(self.parts, Lines(self.parts)).append(line)
            return
        name = f"{platform.node() or 'host'}-{os.getpid()}.jsonl"
        descriptor = os.open(self.parts / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other runs from the file meanwhile. Raises InvalidInput, naming the holder, where one writes it."""
        with locked_folder(self.parts, "kontext edit") if isinstance(self.path, Path) else nullcontext():
            yield
        if not any(self.parts.glob("*.jsonl")):
            shutil.rmtree(self.parts, ignore_errors=True)

    def finish(self, work: Sequence[tuple[Setup, Sequence[ImageJob]]], bad: Sequence[BadRow]) -> None:
        """Write the facts of all of `work`, earlier runs' included, and of rows that are `bad`; then those of images of
        earlier runs that this one did not ask for. Raises InvalidInput where the file cannot be written.
        """
        look_again(elsewhere_of(work))
        recorded = self._recorded()
        rows: list[Facts] = []
        for setup, jobs in work:
            for job in jobs:
                output, is_there = self._relative(str(job.file.path)), job.file.path.exists()
                facts = recorded.pop(output, None)
                if facts is None and is_there:
                    facts = _of_file(job, setup)
                # Without either, the run was stopped before it.
                if facts is not None and (is_there or facts["error"]):
                    rows.append({**facts, "row": job.row, "output": output})
        rows.extend(
            {**{name: row.values.get(name) for name in ("instruction", "output")}, "row": row.row}
            | {"input": row.values.get("image"), "error": row.reason}
            for row in bad
        )
        rows.sort(key=lambda facts: facts["row"] or 0)
        rows.extend(facts for facts in recorded.values() if self._place(str(facts["output"])).exists())
        self._write(rows)
        for part in self.parts.glob("*.jsonl"):
            part.unlink()
        _LINES.pop(self.parts, None)

    def images(self) -> dict[str, dict[str, Any]]:
        """What `--json` says of the images whose facts are not in the Parquet file yet, by their paths."""
        return {str(row["path"]): row["image"] for row in self._lines() if row.get("image")}

    def _write(self, rows: Sequence[Facts]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        schema = pa.schema([(name, kind) for name, kind in COLUMNS.items()])
        content = BytesIO()
        parquet.write_table(pa.Table.from_pylist(list(rows), schema=schema), content)
        try:
            write_atomically(self.path, content.getvalue())
        except OSError as error:
            raise InvalidInput(f"{self.path} cannot be written ({error.strerror or error}); make room.") from error

    def _recorded(self) -> dict[str, Facts]:
        """The last facts of each output: of the file, then of the lines, of which a torn one says nothing."""
        from pyarrow import ArrowException, parquet

        rows: list[Facts] = []
        if self.path.exists():
            try:
                source: Any = self.path if isinstance(self.path, Path) else BytesIO(read(self.path))
                rows.extend(parquet.read_table(source).to_pylist())
            except (OSError, ArrowException) as error:
                raise InvalidInput(f"{self.path} is no readable Parquet file; move it away.") from error
        rows.extend(self._lines())
        return {str(row["output"]): row for row in rows if row.get("output")}

    def _lines(self) -> Iterator[Facts]:
        """What is not in the Parquet file yet, the oldest first."""
        for part in sorted(self.parts.glob("*.jsonl"), key=lambda part: part.stat().st_mtime):
            for line in part.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):
                    yield json.loads(line)

    def _relative(self, output: str) -> str:
        if is_address(output) or not isinstance(self.path, Path):
            return output.removeprefix(f"{self.path.parent}/")
        return os.path.relpath(output, self.path.parent)

    def _place(self, output: str) -> Path:
        return place(output) if is_address(output) else self.path.parent / output


def elsewhere_of(work: Iterable[tuple[Setup, Sequence[ImageJob]]]) -> set[Path]:
    """Folders behind addresses that images of `work` go to."""
    return {job.file.path.parent for _, jobs in work for job in jobs if not isinstance(job.file.path, Path)}


def _of_file(job: ImageJob, setup: Setup) -> Facts:
    """Of an image that a run without facts made."""
    origin = read_origin(job.file.path)
    facts = {**facts_of(job, setup), "checkpoint": origin.get("checkpoint", setup.checkpoint)}
    return {**facts, "seed": int(origin["seed"])} if origin.get("seed", "").isdigit() else facts
