"""A passage of the documents is one module, found without being named anywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.project_records import project
from tools.docs import blocks
from tools.docs.doc_context import discover_blocks
from tools.docs.repository import render_repository


@pytest.fixture
def dummy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a passage in a temporary folder."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "dummy_passage.py").write_text('def render(context):\n    return "A dummy passage."\n')
    monkeypatch.setattr(blocks, "__path__", [*blocks.__path__, str(plugins)])
    discover_blocks.cache_clear()
    yield "dummy_passage"
    discover_blocks.cache_clear()


def test_dummy_passage_is_rendered_into_documents(dummy: str, tmp_path: Path) -> None:
    root = project(tmp_path / "project")
    readme = root / "README.md"
    readme.write_text(f"{readme.read_text()}<!-- records: {dummy} -->\n<!-- /records: {dummy} -->\n")
    render_repository(root)
    assert "A dummy passage." in readme.read_text()
