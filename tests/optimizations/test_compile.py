"""Compiling: artifacts survive the process, damage is noticed, and reverting is complete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.optimizations.acceleration import accelerate, apply_plan
from kontext_fast.optimizations.call_tracking import tracker_of
from kontext_fast.optimizations.techniques.compile import (
    ArtifactStore,
    Compile,
    _require_compilable,
    cache_root,
    directory_for,
)
from kontext_fast.pipeline.device import Machine
from tests import needs
from tests.pipelines import render, small_pipeline

# One matrix product stands for the transformer: the store does not care what was compiled, and no C++ is generated.
PROCESS = """
import json, sys
from pathlib import Path
import torch
from torch._dynamo.utils import counters
from kontext_fast.optimizations.techniques.compile import ArtifactStore

store = ArtifactStore(Path(sys.argv[1]))
loaded = store.load()
before = store.save_new()
torch.compile(lambda x: x @ x)(torch.ones(8, 8))
after = store.save_new()
hits = counters["aot_autograd"]["autograd_cache_hit"]
print(json.dumps([loaded, before, after, store.save_new(), hits, ArtifactStore(Path(sys.argv[1])).load()]))
"""


def _run_process(store: Path, inductor: Path) -> list[Any]:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(inductor)}
    command = [sys.executable, "-c", PROCESS, str(store)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    result: list[Any] = json.loads(finished.stdout)
    return result


@pytest.mark.slow
@needs.cxx_compiler
def test_artifacts_persist_and_damaged_ones_are_rebuilt(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert _run_process(store, tmp_path / "one") == ["none", False, True, False, 0, "loaded"]
    (artifacts,) = store.iterdir()
    assert _run_process(store, tmp_path / "two") == ["loaded", False, False, False, 1, "loaded"]
    assert list(store.iterdir()) == [artifacts]

    content = bytearray(artifacts.read_bytes())
    content[len(content) // 2] ^= 0xFF
    artifacts.write_bytes(content)
    assert _run_process(store, tmp_path / "three") == ["discarded", False, True, False, 0, "loaded"]
    assert len(list(store.iterdir())) == 1


@needs.cxx_compiler
def test_facts_state_how_artifacts_were_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setenv("KONTEXT_FAST_CACHE", str(tmp_path))
    pipe = small_pipeline()
    untouched = render(pipe)
    with accelerate(pipe, [Compile()], quiet=True) as acceleration:
        assert acceleration.facts["compile"] == {"artifacts": "none"}
        blocks = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
        assert all(block._compiled_call_impl is not None for block in blocks)
        assert pipe.transformer._compiled_call_impl is None
        torch._dynamo.reset()
        graphs = counters["stats"]["unique_graphs"]
        images = render(pipe)
        assert counters["stats"]["unique_graphs"] >= graphs + 2
        assert acceleration.facts["compile"] == {"artifacts": "saved"}
        (stored,) = directory_for(pipe.transformer, Compile().parameters()).iterdir()
        render(pipe)
        assert list(stored.parent.iterdir()) == [stored]
    with accelerate(pipe, [Compile()], quiet=True) as again:
        assert again.facts["compile"] == {"artifacts": "loaded"}
    assert all("_compiled_call_impl" not in vars(block) for block in blocks)
    np.testing.assert_array_equal(render(pipe), untouched)
    np.testing.assert_allclose(images, untouched, rtol=0, atol=1e-3)


@needs.cxx_compiler
def test_unwritable_cache_still_renders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("KONTEXT_FAST_CACHE", str(tmp_path / "file"))
    pipe = small_pipeline()
    with accelerate(pipe, [Compile()], quiet=True) as acceleration:
        torch._dynamo.reset()
        assert np.isfinite(render(pipe)).all()
        assert acceleration.facts["compile"]["artifacts"].startswith("not saved (")
    assert (tmp_path / "file").read_text() == "not a folder"


@needs.cxx_compiler
@pytest.mark.slow
def test_whole_transformer_compiles_as_one_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setenv("KONTEXT_FAST_CACHE", str(tmp_path))
    pipe = small_pipeline()
    untouched = render(pipe, steps=2)
    graphs = counters["stats"]["unique_graphs"]
    with accelerate(pipe, [Compile(mode="whole")], quiet=True):
        np.testing.assert_allclose(render(pipe, steps=2), untouched, rtol=0, atol=1e-3)
    assert counters["stats"]["unique_graphs"] == graphs + 1
    np.testing.assert_array_equal(render(pipe, steps=2), untouched)


def test_artifact_directory_depends_on_what_is_compiled() -> None:
    small, other = small_pipeline().transformer, small_pipeline(single=2).transformer
    parameters = Compile().parameters()
    directories = {
        directory_for(small, parameters),
        directory_for(other, parameters),
        directory_for(small, Compile(max_autotune=True).parameters()),
        directory_for(small.to(torch.bfloat16), parameters),
    }
    assert len(directories) == 4
    assert directory_for(small_pipeline().transformer, parameters) in directories


def test_artifact_directory_depends_on_the_chip_and_class(monkeypatch: pytest.MonkeyPatch) -> None:
    chips = ("H100", "A100")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: chips[device.index])

    class Another(SimpleNamespace):
        pass

    def directory(kind: type = SimpleNamespace, device: str = "cpu", **config: Any) -> Path:
        return directory_for(kind(device=torch.device(device), dtype=torch.bfloat16, config=config), {})

    different = [directory(), directory(Another), directory(device="cuda:0"), directory(device="cuda:1")]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    assert len({*different, directory()}) == 5
    # In whatever order a configuration is, and whatever is in it, as what a loader quantized with.
    assert directory(a=1, b=torch.int8) == directory(b=torch.int8, a=1, _path="x") != directory(a=1, b=torch.int16)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KONTEXT_FAST_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("KONTEXT_FAST_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "kontext-fast"


def test_uncompilable_transformer_follows_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    from kontext_fast.optimizations.presets import resolve

    monkeypatch.setenv("KONTEXT_FAST_CACHE", str(tmp_path))
    able = Machine(device="cpu", memory_bytes=1, cxx="g++", cc=None, triton=False, torch="2.13.0", platform="x")
    plan = resolve([Compile()], able)
    compiled = small_pipeline()
    compiled.transformer.compile_repeated_blocks()
    with pytest.raises(
        InvalidInput, match=r"^The transformer is compiled already; load it again without torch\.compile\.$"
    ):
        apply_plan(plan, compiled)
    apply_plan(plan, small_pipeline()).revert()
    hooked = small_pipeline()
    add_hook_to_module(hooked.transformer.transformer_blocks[0].attn, ModelHook())
    with pytest.raises(InvalidInput, match=r"offloading or other hooks.*use a preset without compile\."):
        apply_plan(plan, hooked)
    with accelerate(hooked, "first_block_cache", quiet=True):
        assert np.isfinite(render(hooked, steps=1)).all()
    outside = small_pipeline()
    add_hook_to_module(outside.transformer, ModelHook())
    with pytest.raises(InvalidInput, match="use a preset without compile or mode=regional"):
        apply_plan(resolve([Compile(mode="whole")], able), outside)
    apply_plan(resolve([Compile(mode="regional")], able), outside).revert()


def test_missing_compiler_is_found_as_the_remedy_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kontext_fast.optimizations.presets import resolve

    # A machine whose compiler is not where programs are looked for.
    compiler = tmp_path / "elsewhere" / "g++"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match=r"install g\+\+ \(or set CXX\)"):
        resolve("compile", Machine.detect("cpu"))
    monkeypatch.setenv("CXX", str(compiler))
    assert resolve("compile", Machine.detect("cpu")).optimizations == (Compile(),)
    monkeypatch.delenv("CXX")
    (tmp_path / "g++").symlink_to(compiler)
    assert resolve("compile", Machine.detect("cpu")).optimizations == (Compile(),)


@needs.cxx_compiler
def test_store_has_one_file_with_everything_that_was_compiled(tmp_path: Path) -> None:
    store, files = ArtifactStore(tmp_path), []
    assert store.load() == "none"
    for product in (lambda x: x @ x, lambda x: x @ x @ x):
        torch._dynamo.reset()
        torch.compile(product)(torch.ones(8, 8))
        assert store.save_new()
        files += tmp_path.iterdir()
    assert len(files) == len(set(files)) == 2
    assert not store.save_new()
    (tmp_path / "damaged.artifacts").write_bytes(b"damaged")
    assert ArtifactStore(tmp_path).load() == "loaded"
    assert list(tmp_path.iterdir()) == [files[1]]


@pytest.mark.parametrize(
    ("facts", "refusal"),
    [
        ({}, None),
        ({"cxx": None}, "compile needs a C++ compiler on a CPU; install g++ (or set CXX), then try again"),
        ({"device": "mps"}, "compile is not supported on mps; use a preset without it"),
        ({"device": "cuda", "cxx": None}, None),
        ({"device": "cuda", "capability": (7, 0)}, None),
        (
            {"device": "cuda", "capability": (6, 1)},
            "compile needs compute capability 7.0, this GPU has 6.1; use a preset without it",
        ),
        (
            {"device": "cuda", "triton": False},
            "compile needs Triton on a GPU; run `pip install triton`, then try again",
        ),
        (
            {"device": "cuda", "cc": None},
            "compile needs a C compiler on a GPU; install gcc (or set CC), then try again",
        ),
    ],
)
def test_machine_without_what_compiling_takes_is_refused(facts: dict[str, Any], refusal: str | None) -> None:
    able: dict[str, Any] = {"device": "cpu", "memory_bytes": 1, "cxx": "g++", "cc": "gcc", "triton": True}
    assert Compile().refusal(Machine(**{**able, "torch": "2.13.0", "platform": "x", **facts})) == refusal


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        ("win32", {"LOCALAPPDATA": "/local", "XDG_CACHE_HOME": "/other"}, "/local/kontext-fast"),
        ("win32", {}, "/home/me/AppData/Local/kontext-fast"),
        ("darwin", {"LOCALAPPDATA": "/other", "XDG_CACHE_HOME": "/other"}, "/home/me/Library/Caches/kontext-fast"),
        ("linux", {"LOCALAPPDATA": "/other"}, "/home/me/.cache/kontext-fast"),
    ],
)
def test_cache_folder_is_where_a_system_has_such_folders(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], folder: str
) -> None:
    for name in ("KONTEXT_FAST_CACHE", "LOCALAPPDATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_root() == Path(folder)


def test_every_kind_of_block_is_compiled_or_the_transformer() -> None:
    transformer = small_pipeline(double=2).transformer
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    assert Compile()._modules(transformer) == blocks
    assert Compile(mode="whole")._modules(transformer) == [transformer]


@needs.cxx_compiler
def test_what_is_not_one_graph_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KONTEXT_FAST_CACHE", str(tmp_path))
    pipe = small_pipeline()
    pipe.transformer.transformer_blocks[0].register_forward_pre_hook(lambda *_: torch._dynamo.graph_break())
    for compiled in (Compile(), Compile(max_autotune=True)):
        with accelerate(pipe, [compiled], quiet=True), pytest.raises(torch._dynamo.exc.Unsupported):
            render(pipe, steps=1)


def test_hooks_of_diffusers_are_refused_and_what_they_leave_behind_is_not() -> None:
    from diffusers.hooks import HookRegistry, ModelHook

    transformer = small_pipeline().transformer
    registry = HookRegistry.check_if_exists_or_initialize(transformer.transformer_blocks[0].attn)
    _require_compilable(transformer, alone=True)
    registry.register_hook(ModelHook(), "one")
    with pytest.raises(InvalidInput, match=r"offloading or other hooks.*; use a preset without compile\.$"):
        _require_compilable(transformer, alone=True)


@pytest.mark.parametrize(
    ("parameters", "dynamic", "mode"),
    [({}, Compile().dynamic, None), ({"dynamic": True, "max_autotune": True}, True, "max-autotune-no-cudagraphs")],
)
def test_torch_is_asked_to_compile_as_the_parameters_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parameters: dict[str, Any], dynamic: Any, mode: str | None
) -> None:
    monkeypatch.setenv("KONTEXT_FAST_CACHE", str(tmp_path))
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _, **how: asked.append(how))
    monkeypatch.setattr(ArtifactStore, "save_new", lambda _: True)  # as after a call that compiled something
    pipe = small_pipeline()
    with ExitStack() as undo:
        facts = Compile(**parameters).apply(pipe, undo)
        assert asked == [{"fullgraph": True, "dynamic": dynamic, "mode": mode}] * 2
        assert facts == {"artifacts": "none"}
        calls = tracker_of(pipe)
        assert calls is not None
        with calls.open(pipe):
            pass
        assert facts == {"artifacts": "saved"}


def test_artifact_directory_depends_on_the_version_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, config={})
    before = directory_for(transformer, {})
    monkeypatch.setattr(torch, "__version__", "another")
    assert directory_for(transformer, {}) != before
