"""Files behind an address such as `s3://bucket/photos`, beside those of this machine, by fsspec and universal-pathlib.

A `UPath` has the methods of a `Path` and is none, which tells the two apart. An object appears whole or not at all;
there is no lock, and nothing can be appended to it. What libraries raise becomes one sentence.
"""

from __future__ import annotations

import functools
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, cast

from kontext_fast.errors import InvalidInput, KontextError, Refused

S3: Final = "pip install 'kontext-fast[s3]'"
"""What brings the packages for addresses."""

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_TRIAL = ".kontext-fast-trial"
_LINES_OF_A_PART = 200


def is_address(text: str) -> bool:
    """Whether `text` has the form PROTOCOL://PLACE."""
    return _ADDRESS.match(text) is not None


def place(text: str) -> Path:
    """A path of this machine, or an address as a `UPath`, which is used as one.

    Raises Refused where a package is missing, and InvalidInput for an address that no package knows.
    """
    if not is_address(text):
        return Path(text)
    try:
        from upath import UPath

        path = UPath(text)
        with reached(text):
            _ = path.fs
    except ModuleNotFoundError as error:
        raise Refused(f"{text} needs the package {error.name}; run `{S3}`.") from error
    except ImportError as error:
        raise Refused(f"{text} needs a package ({error}); install it: `{S3}` brings that of s3://.") from error
    except ValueError as error:
        raise InvalidInput(f"{text} is no known address ({error}); give a path, or s3://BUCKET/...") from error
    return cast(Path, path)


def is_elsewhere(path: Path) -> bool:
    """Whether `path` was an address."""
    return not isinstance(path, Path)


@contextmanager
def reached(path: Path | str) -> Iterator[None]:
    """Raise what keeps `path` from being reached as InvalidInput; what is said of a path of this machine stays."""
    try:
        yield
    except (KontextError, FileNotFoundError, ImportError, ValueError):
        raise
    # Of dozens of packages, each with errors of its own.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(
            f"{path} cannot be reached ({reason}); check the address, the credentials and the network."
        ) from error


def is_there(path: Path) -> bool:
    """Whether there is a file or a folder elsewhere. Raises InvalidInput where it cannot be reached."""
    with reached(path):
        return path.exists()


def read(path: Path) -> bytes:
    """The content of a file elsewhere. Raises InvalidInput where there is none, or it cannot be reached."""
    try:
        with reached(path):
            return path.read_bytes()
    except FileNotFoundError:
        raise InvalidInput(f"There is no file {path}; check the address.") from None


def opened(path: Any, block_bytes: int) -> Any:
    """A file elsewhere that exists, of which little more is read than is asked for. Raises InvalidInput."""
    with reached(path):
        return path.open("rb", block_size=block_bytes)


def write(path: Path, content: bytes) -> None:
    """Put `content` where `path` points. Raises InvalidInput where that cannot be."""
    there: Any = path
    with reached(path):
        try:
            there.fs.pipe_file(there.path, content)
        except FileNotFoundError:  # of file systems with folders; a bucket was there, or `require_writable` had raised
            path.parent.mkdir(parents=True, exist_ok=True)
            there.fs.pipe_file(there.path, content)


@functools.lru_cache(maxsize=256)
def require_writable(folder: Path) -> None:
    """Raise InvalidInput unless the bucket of `folder` is there and takes an object, once for each folder."""
    root: Any = folder.parents[-1] if folder.parents else folder
    with reached(folder):
        if not root.exists():
            raise InvalidInput(f"There is no {root} for {folder}; make it first, or choose another place.")
        trial = folder / f"{_TRIAL}-{uuid.uuid4().hex}"
        write(trial, b"")
        with suppress(Exception):  # who may write may not always delete
            trial.unlink()


def look_again(folders: Iterable[Path]) -> None:
    """List `folders` elsewhere anew, so that what is asked of their files then takes no request for each."""
    for folder in folders:
        there: Any = folder
        with reached(folder), suppress(FileNotFoundError):
            there.fs.invalidate_cache(there.path)
            there.fs.ls(there.path, detail=True)


class Lines:
    """Lines that one process appends in a folder elsewhere: the newest ones are written again with each, as an object
    is only ever written whole, and a new object is begun after some."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stem, self._part = uuid.uuid4().hex, 0
        self._lines: list[bytes] = []

    def append(self, line: bytes) -> None:
        """Returns once `line` is there. Raises InvalidInput."""
        self._lines.append(line)
        write(self._folder / f"{self._stem}-{self._part:06}.jsonl", b"".join(self._lines))
        if len(self._lines) == _LINES_OF_A_PART:
            self._part, self._lines = self._part + 1, []
