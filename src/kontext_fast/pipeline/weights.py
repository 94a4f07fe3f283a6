"""Which files hold weights, and what identifies them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_SHA256 = re.compile(r"[0-9a-f]{64}")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files directly in `folder`, sorted by name."""
    return sorted(folder.glob("*.safetensors"))


def weights_sha256(files: list[Path]) -> str:
    """One hash of the contents of `files`: of the file itself where it is one, else of the files' hashes in order."""
    hashes = [_file_sha256(file) for file in files]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _file_sha256(file: Path) -> str:
    # The cache of the Hub names a large file by its sha256 and links to it: no need to read 24 GB again.
    blob = file.resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
