"""The outputs of a verification so far, on disk after every call, so that a kill neither loses nor repeats one.

The file has one JSON line per item of an arm, after a first line with everything that decides the outputs. A truncated
last line is dropped: its images are generated again.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import Output

FOLDER = "work"
"""In the result folder; it may be deleted once the verification is done."""


class Journal:
    """The outputs of all arms, and their latents in files of their own."""

    def __init__(self, out: Path) -> None:
        self._folder = out / FOLDER
        self._file = self._folder / "outputs.jsonl"
        self._done: dict[str, dict[str, tuple[Output, ...]]] = defaultdict(dict)

    def begin(self, setup: Mapping[str, Any]) -> None:
        """Start a new journal. `setup` is everything that decides the outputs, as JSON."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._append([{"setup": dict(setup)}])

    def resume(self, setup: Mapping[str, Any]) -> None:
        """Read the journal. Raises InvalidInput where there is none, or that of another verification."""
        lines = self._lines()
        if not lines or "setup" not in lines[0]:
            raise InvalidInput("There is no verification to resume; leave out --resume, or give its folder as --out.")
        before, now = lines[0]["setup"], json.loads(json.dumps(setup))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            raise InvalidInput(
                f"The verification to resume differs in {', '.join(changed)}; repeat its options, or start a new one."
            )
        for line in lines[1:]:
            self._done[line["arm"]][line["item"]] = tuple(Output(**output) for output in line["outputs"])

    def done(self, arm: str) -> Mapping[str, tuple[Output, ...]]:
        """Outputs by item, in the order in which they were generated."""
        return self._done[arm]

    def add(
        self, arm: str, results: Sequence[tuple[str, Sequence[Output], Mapping[int, npt.NDArray[np.float32]]]]
    ) -> None:
        """Keep the results of one call: for each item its id, the outputs of all seeds, and latents by seed."""
        for item, _, latents in results:
            for seed, array in latents.items():
                path = self.latents_file(arm, item, seed)
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, array)
        self._append(
            {"arm": arm, "item": item, "outputs": [output.model_dump(mode="json") for output in outputs]}
            for item, outputs, _ in results
        )
        self._done[arm].update({item: tuple(outputs) for item, outputs, _ in results})

    def latents_file(self, arm: str, item: str, seed: int) -> Path:
        """Where the latents of an output are; outputs made from images have none."""
        name = "".join(letter if letter.isalnum() else "-" for letter in arm)
        return self._folder / "latents" / name / f"{item}-{seed}.npy"

    def _append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        with self._file.open("ab") as file:
            file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def _lines(self) -> list[dict[str, Any]]:
        try:
            content = self._file.read_bytes()
        except OSError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            # The next entry must begin on a line of its own.
            os.truncate(self._file, len(whole))
        return [json.loads(line) for line in whole.splitlines()]
