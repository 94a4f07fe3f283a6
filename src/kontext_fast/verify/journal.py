"""The outputs of a verification so far, on disk after every call, so that a kill neither loses nor repeats one.

The file has one JSON line per item of an arm, after a first line with everything that decides the outputs. A line that
was cut or altered, as its hash tells, is left out, and so is one whose latents or images are not there: its images are
generated again.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import Output
from kontext_fast.records.store import content_hash

FOLDER = "work"
"""In the result folder; it may be deleted once the verification is done."""

_HASH = "sha256"
"""The key of a line under which the hash of the others stands."""


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

    def resume(self, setup: Mapping[str, Any], image_file: Callable[[str], Path]) -> None:
        """Read the journal; `image_file` says where the image with a hash is. Raises InvalidInput where there is no
        journal, or that of another verification.
        """
        lines = self._lines()
        if not lines or lines[0] is None or "setup" not in lines[0]:
            raise InvalidInput("There is no verification to resume; leave out --resume, or give its folder as --out.")
        before, now = lines[0]["setup"], json.loads(json.dumps(setup))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            raise InvalidInput(
                f"The verification to resume differs in {', '.join(changed)}; repeat its options, or start a new one."
            )
        for line in filter(None, lines[1:]):
            outputs = tuple(Output(**output) for output in line["outputs"])
            if all(
                _is_whole(self.latents_file(line["arm"], line["item"], output.seed))
                and (output.image is None or image_file(output.image).is_file())
                for output in outputs
            ):
                self._done[line["arm"]][line["item"]] = outputs

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
                whole = path.with_suffix(".new.npy")
                np.save(whole, array)
                whole.replace(path)
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
            file.write(b"".join(json.dumps({**line, _HASH: content_hash(line)}).encode() + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def _lines(self) -> list[dict[str, Any] | None]:
        try:
            content = self._file.read_bytes()
        except OSError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            # The next entry must begin on a line of its own.
            os.truncate(self._file, len(whole))
        return list(map(_parsed, whole.splitlines()))


def _parsed(line: bytes) -> dict[str, Any] | None:
    """What a line says; None where it is not what was written, which may still be JSON, as that of another item is."""
    try:
        values = json.loads(line)
        digest = values.pop(_HASH)
        return values if content_hash(values) == digest else None
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError):
        return None


def _is_whole(file: Path) -> bool:
    """Whether a latents file can be read to its end, or is not there, as for outputs made from images."""
    try:
        np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return True
    except (OSError, ValueError, EOFError):
        return False
    return True
