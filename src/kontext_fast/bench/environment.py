"""Facts about the machine and the software of a run, and the compile caches that its process uses.

The facts contain no user name, path or token, since records are published.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kontext_fast.bench.nvml import NvmlDevice
from kontext_fast.bench.schedule import Configuration
from kontext_fast.errors import InvalidInput
from kontext_fast.records.privacy import recorded_flags

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "triton", "numpy")


def environment_facts(device: str) -> dict[str, Any]:
    """Facts as JSON values; None for unknown ones. `device` is the device of the run, e.g. "cuda:0"."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        **_host(),
        "packages": {name: installed_version(name) for name in _PACKAGES},
        "git": _git(),
        "flags": recorded_flags(),
        "device": device,
        **_torch(device),
    }


def _host() -> dict[str, Any]:
    import psutil

    return {
        "host_sha256": _host_identity(),
        "cpu": _cpu_model(),
        "cpu_cores": psutil.cpu_count(logical=False),
        "cpu_threads": psutil.cpu_count(),
        "cpu_threads_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "ram_bytes": psutil.virtual_memory().total,
    }


def _host_identity() -> str | None:
    """A hash that distinguishes hosts without naming them; None if the system has no identity."""
    for source in (Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id")):
        try:
            if identity := source.read_text().strip():
                return hashlib.sha256(f"kontext-fast {identity}".encode()).hexdigest()
        except OSError:
            continue
    return None


def _cpu_model() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def installed_version(package: str) -> str | None:
    """The version of an installed package; None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the checkout that this package runs from; None for an installed package."""
    package = Path(__file__).resolve().parents[1]
    if package.parent.name != "src":
        return None
    try:
        commit = _run_git(package, "rev-parse", "HEAD")
        dirty = bool(_run_git(package, "status", "--porcelain", "--", "."))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": dirty}


def _run_git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


def _torch(device: str) -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {
        "torch_threads": torch.get_num_threads(),
        "torch_interop_threads": torch.get_num_interop_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(torch.device(device))
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        facts["gpu"] = {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "uuid_sha256": hashlib.sha256(str(properties.uuid).encode()).hexdigest(),
            **(card.facts() if (card := NvmlDevice.of(torch.device(device))) is not None else {}),
        }
    return facts


FOLDER = ".compile-caches"

_VARIABLES = {
    "KONTEXT_FAST_CACHE": "artifacts",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}
"""Every cache that keeps compiled code between processes."""


class CompileCaches:
    """Folders below a result folder: a cold run empties the one of its preset, and the warm run after it reads that."""

    def __init__(self, out: Path) -> None:
        self._folder = out.absolute() / FOLDER

    def variables(self, configuration: Configuration) -> dict[str, str]:
        """Environment variables for the process of `configuration`. The folders of a cold run are empty.

        Raises InvalidInput if those of a warm run do not exist.
        """
        if configuration.compile_cache == "user":
            return {}
        folder = self._folder / re.sub(r"\W", "_", configuration.name)
        if configuration.compile_cache == "cold":
            shutil.rmtree(folder, ignore_errors=True)
        elif not folder.is_dir():
            raise InvalidInput(
                f"The compile cache of the cold run of {configuration.name} does not exist any more; "
                "measure again in a new folder."
            )
        for name in _VARIABLES.values():
            (folder / name).mkdir(parents=True, exist_ok=True)
        return {variable: str(folder / name) for variable, name in _VARIABLES.items()}

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
