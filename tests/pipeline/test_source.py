from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontext_fast import pipeline
from kontext_fast.bench.suites import read_suite
from kontext_fast.errors import CheckpointUnavailable
from kontext_fast.pipeline.load import find_source, kind_of, load, sources

PLUGIN = """
from kontext_fast.pipeline.folder import TINY_FOLDER, load_folder
from kontext_fast.pipeline.load import CheckpointSource

GGUF = CheckpointSource(
    name="a .gguf file",
    kind="gguf",
    precedence=15,
    matches=lambda checkpoint: checkpoint.endswith(".gguf"),
    load=lambda checkpoint, target: load_folder(TINY_FOLDER, target, kind="gguf", name="q4", shown=checkpoint),
)
"""

SHOW = """
import sys
from kontext_fast import pipeline
pipeline.__path__.append(sys.argv[1])
from kontext_fast.cli.main import run
run(["edit", "--help"])
run(["doctor", "--json"])
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A kind of checkpoint in a folder of its own."""
    (tmp_path / "gguf_plugin.py").write_text(PLUGIN)
    monkeypatch.setattr(pipeline, "__path__", [*pipeline.__path__, str(tmp_path)])
    sources.cache_clear()
    yield
    sources.cache_clear()


def test_each_checkpoint_name_has_its_kind(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    names = ("tiny", "random", str(tmp_path), str(file), "org/name")
    assert [find_source(name).kind for name in names] == ["tiny", "random", "folder", "folder", "hub"]


def test_folder_named_tiny_does_not_hide_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_source("tiny").kind == "tiny"


def test_only_tiny_has_a_judge_only_random_is_random() -> None:
    kinds = {name: kind_of(name) for name in ("tiny", "random", "org/name")}
    assert [name for name, kind in kinds.items() if kind.has_judge] == ["tiny"]
    assert [name for name, kind in kinds.items() if kind.random_weights] == ["random"]
    assert [name for name, kind in kinds.items() if kind.caution is None] == ["org/name"]


@pytest.mark.usefixtures("plugin")
def test_new_kind_of_checkpoint_is_one_module(tmp_path: Path) -> None:
    file = tmp_path / "flux.gguf"
    file.touch()
    loaded = load(str(file), device="cpu")
    assert (loaded.facts.name, loaded.facts.kind) == ("q4", "gguf")
    assert loaded.facts.caution is None
    with pytest.raises(CheckpointUnavailable, match=r"use tiny, random, .*, a \.gguf file, a diffusers folder"):
        load("./nowhere", device="cpu")
    shown = subprocess.run([sys.executable, "-c", SHOW, str(tmp_path)], capture_output=True, text=True, check=True)
    assert " ".join(shown.stdout.split()).count("a .gguf file") == 2  # wherever the help breaks its lines
    suite = tmp_path / "mine.toml"
    bundled = Path(read_suite.__code__.co_filename).parent / "suites" / "quick.toml"
    suite.write_text(bundled.read_text() + "\n[gguf]\nrounds = 7\n")
    assert read_suite(str(suite)).resolve("gguf").rounds == 7
