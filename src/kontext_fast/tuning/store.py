"""What a tuning has computed so far, one file per result, so that it goes on after a stop at any moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kontext_fast.errors import InvalidInput

_REQUEST = "request.json"

Arrays = Mapping[str, npt.NDArray[Any]]


class Store:
    """Results by name in a folder. Each is written whole or not at all, and never written again."""

    def __init__(self, folder: Path, request: Mapping[str, Any], *, resume: bool) -> None:
        """`request` says what is computed. Raises InvalidInput where the folder holds results of another one."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(request, indent=1, sort_keys=True)
        known = folder / _REQUEST
        if resume and known.is_file() and known.read_text() != text:
            raise InvalidInput(
                f"{folder} belongs to a tuning of other items, weights or options; repeat that command, or choose "
                "another folder."
            )
        if not resume and known.is_file():
            raise InvalidInput(f"{folder} holds a tuning already; give resume=True to go on, or choose another folder.")
        self._write(known, lambda path: path.write_text(text))

    def arrays(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """The arrays of that name, computed where they are not stored; read from the disk as they are needed."""
        folder = self._folder / name
        if not folder.is_dir():
            self._write(folder, lambda path: _save(path, compute()))
        return {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}

    def data(self, name: str, compute: Callable[[], Any]) -> Any:
        """The same of anything that JSON can hold."""
        file = self._folder / f"{name}.json"
        if not file.is_file():
            self._write(file, lambda path: path.write_text(json.dumps(compute())))
        return json.loads(file.read_text())

    def _write(self, target: Path, write: Callable[[Path], object]) -> None:
        unfinished = target.with_name(f".{target.name}.unfinished")
        if unfinished.is_dir():
            for file in unfinished.iterdir():
                file.unlink()
            unfinished.rmdir()
        write(unfinished)
        unfinished.replace(target)


def _save(folder: Path, arrays: Arrays) -> None:
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
