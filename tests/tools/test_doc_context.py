"""A passage of the documents is one module, found without being named anywhere else."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import AddPlugin
from tests.tools.project_records import project
from tools.docs import blocks
from tools.docs.doc_context import discover_blocks
from tools.docs.repository import render_repository

PASSAGE = """
def render(context):
    return "A dummy passage."
"""


def test_dummy_passage_is_rendered_into_documents(add_plugin: AddPlugin, tmp_path: Path) -> None:
    add_plugin(blocks, "dummy_passage", PASSAGE, discover_blocks)
    root = project(tmp_path / "project")
    readme = root / "README.md"
    readme.write_text(f"{readme.read_text()}<!-- records: dummy_passage -->\n<!-- /records: dummy_passage -->\n")
    render_repository(root)
    assert "A dummy passage." in readme.read_text()
