"""Compiled artifacts on disk, so that the next process need not compile again.

One directory per (torch, device, technique parameters, architecture); in it one file per set of artifacts, named by
the sha256 of its content, which is how a damaged file is told from a good one. `KONTEXT_FAST_CACHE` names the root;
without it, `kontext-fast` in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from kontext_fast.records.atomic import write_atomically

Loaded = Literal["loaded", "none", "discarded"]

_ArtifactKeys = frozenset[tuple[str, str]]
_SUFFIX = ".artifacts"


def cache_root() -> Path:
    """The folder under which everything that can be computed again is kept. It may not exist yet."""
    if chosen := os.environ.get("KONTEXT_FAST_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "kontext-fast"


def directory_for(transformer: Any, parameters: Mapping[str, Any]) -> Path:
    """Where the artifacts of this transformer, compiled with `parameters`, belong on this machine."""
    import torch

    device = transformer.device
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    architecture = {key: value for key, value in dict(transformer.config).items() if not key.startswith("_")}
    identity = [
        str(torch.__version__), sys.version_info[:2], device.type, chip, str(transformer.dtype),
        type(transformer).__name__, architecture, dict(parameters),
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
    return cache_root() / "compile" / digest[:16]


class ArtifactStore:
    """The artifacts in one directory, and which of this process's are not among them yet."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stored: dict[Path, _ArtifactKeys] = {}
        self._graphs_seen = _graphs_compiled()

    def load(self) -> Loaded:
        """Hand every stored artifact to torch; a damaged file is deleted, for it will be compiled again."""
        import torch

        damaged = False
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            content = path.read_bytes()
            intact = path.name == _file_name(content)
            info = torch.compiler.load_cache_artifacts(content) if intact else None
            if info is None:
                damaged = True
                path.unlink(missing_ok=True)
            else:
                self._stored[path] = _keys(info)
        if self._stored:
            return "loaded"
        return "discarded" if damaged else "none"

    def save_new(self) -> bool:
        """Store this process's artifacts if something was compiled since the last look and is not stored yet.

        Returns whether a file was written. The file appears whole or not at all.
        """
        import torch

        graphs = _graphs_compiled()
        if graphs == self._graphs_seen:
            return False
        self._graphs_seen = graphs
        saved = torch.compiler.save_cache_artifacts()
        if saved is None:
            return False
        content, keys = saved[0], _keys(saved[1])
        if keys <= frozenset().union(*self._stored.values()):
            return False
        path = self._directory / _file_name(content)
        write_atomically(path, content)
        for older in [known for known, contained in self._stored.items() if contained < keys and known != path]:
            older.unlink(missing_ok=True)
            del self._stored[older]
        self._stored[path] = keys
        return True


def _graphs_compiled() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _keys(info: Any) -> _ArtifactKeys:
    return frozenset((kind, key) for kind, keys in info.artifacts.items() for key in keys)


def _file_name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() + _SUFFIX
