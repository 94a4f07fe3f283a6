"""`compile`: the transformer through torch.compile, with the compiled artifacts kept across processes.

On a GPU the artifacts hold the finished kernels. On a CPU they hold the generated C++ code only; the libraries built
from it stay in inductor's own disk cache (TORCHINDUCTOR_CACHE_DIR), and are rebuilt where that is gone.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.base import Conflict, Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import PipelineCall, track_calls
from kontext_fast.optimizations.patching import keep_attribute
from kontext_fast.records.store import write_atomically

if TYPE_CHECKING:
    from kontext_fast.pipeline.device import Machine


class Compile(Optimization):
    """Generated kernels fuse elementwise work into few passes over memory; their rounding differs from eager's."""

    name: ClassVar[str] = "compile"
    summary: ClassVar[str] = "transformer as fused, generated kernels (torch.compile)"
    effect: ClassVar[Effect] = Effect.NUMERIC
    phase: ClassVar[Phase] = Phase.COMPILE
    conflicts: ClassVar[tuple[Conflict, ...]] = (
        Conflict(
            "first_block_cache",
            because="since a decision that depends on data does not fit into one whole graph; use mode=regional",
            when={"mode": "whole"},
        ),
        Conflict(
            "solver",
            because="since times that change with every step do not fit into one whole graph; use mode=regional",
            when={"mode": "whole"},
        ),
    )

    mode: Literal["regional", "whole"] = "regional"
    """`regional` compiles each kind of block once and uses it for all of them; `whole` the transformer as one graph."""
    max_autotune: bool = False
    """Time several kernels for each matrix product and keep the fastest: minutes more of compilation."""
    dynamic: bool | None = None
    """Shapes: True compiles for any, False for each one anew, None for the first one and then for any."""

    def refusal(self, machine: Machine) -> str | None:
        """A CPU needs a C++ compiler; a CUDA device needs Triton, a C compiler and compute capability 7.0."""
        if machine.device == "cpu":
            missing = machine.cxx is None
            return (
                "compile needs a C++ compiler on a CPU; install g++ (or set CXX), then try again" if missing else None
            )
        if machine.device != "cuda":
            return f"compile is not supported on {machine.device}; use a preset without it"
        if machine.capability is not None and machine.capability < (7, 0):
            major, minor = machine.capability
            return f"compile needs compute capability 7.0, this GPU has {major}.{minor}; use a preset without it"
        if not machine.triton:
            return "compile needs Triton on a GPU; run `pip install triton`, then try again"
        return None if machine.cc else "compile needs a C compiler on a GPU; install gcc (or set CC), then try again"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Compile on first use; nothing is compiled yet when this returns.

        The fact `artifacts` is `loaded`, `none` or `discarded` (what was stored was corrupt); after a request that
        compiled something new it is `saved`, or `not saved` with the reason.
        Raises InvalidInput if the transformer is compiled already or offloaded layer by layer.
        """

        transformer = pipe.transformer
        modules = self._modules(transformer)
        for module in modules:
            _require_compilable(module, alone=self.mode == "regional")
        store = ArtifactStore(directory_for(transformer, self.parameters()))
        facts: Facts = {"artifacts": store.load()}
        for module in modules:
            keep_attribute(module, "_compiled_call_impl", undo)
            module.compile(
                fullgraph=True,
                dynamic=self.dynamic,
                # Not plain max-autotune: its CUDA graphs overwrite the output of the pass before under true CFG.
                mode="max-autotune-no-cudagraphs" if self.max_autotune else None,
            )

        def save(call: PipelineCall) -> None:
            try:
                if store.save_new():
                    facts["artifacts"] = "saved"
            except OSError as error:
                # The images are done; a full or read-only disk costs the next process time, not this one its result.
                facts["artifacts"] = f"not saved ({error.strerror})"

        track_calls(pipe, undo).on_completed(save, undo)
        return facts

    def _modules(self, transformer: Any) -> list[Any]:
        if self.mode == "whole":
            return [transformer]
        return [module for module in transformer.modules() if type(module).__name__ in transformer._repeated_blocks]


def _require_compilable(module: Any, *, alone: bool) -> None:
    for part in module.modules():
        if part._compiled_call_impl is not None:
            raise InvalidInput("The transformer is compiled already; load it again without torch.compile.")
        # diffusers leaves an empty registry of hooks behind after every request.
        registry = vars(part).get("_diffusers_hook")
        if "_hf_hook" in vars(part) or (registry is not None and registry.hooks):
            remedy = "use a preset without compile" + ("" if alone else " or mode=regional")
            raise InvalidInput(f"compile cannot see through offloading or other hooks in the transformer; {remedy}.")


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
        self._lock = Lock()
        self._stored: dict[Path, _ArtifactKeys] = {}
        self._graphs_seen = graphs_compiled()

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
        with self._lock:
            return self._save_new()

    def _save_new(self) -> bool:
        import torch

        graphs = graphs_compiled()
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


def graphs_compiled() -> int:
    """How many graphs torch.compile has compiled in this process, recompilations included."""
    # Importing the module takes seconds; in a process that has compiled anything it is imported already.
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo is not None else 0


def _keys(info: Any) -> _ArtifactKeys:
    return frozenset((kind, key) for kind, keys in info.artifacts.items() for key in keys)


def _file_name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() + _SUFFIX
