"""Pages that the code writes of itself, and the pages that people write of it: nothing that there is, is missing."""

from __future__ import annotations

import re
from pathlib import Path

import typer

import kontext_fast
from kontext_fast.cli.main import build_app
from kontext_fast.optimizations.registry import discover
from tools.site import hooks
from tools.site.code_pages import commands_page, reference_page

ROOT = Path(__file__).parents[2]
ENVIRON = re.compile(r"environ(?:\.get\(|\.setdefault\(|\[)\"([A-Z_]+)\"")


def test_commands_page_has_every_option() -> None:
    sections = dict(re.findall(r"^### kontext (\S+)\n(.*?)(?=^##|\Z)", commands_page(), re.MULTILINE | re.DOTALL))
    commands = typer.main.get_command(build_app()).commands  # type: ignore[attr-defined]
    assert sections.keys() == commands.keys()
    for name, command in commands.items():
        for parameter in command.params:
            spelled = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar or ""]
            assert parameter.hidden or all(word in sections[name] for word in spelled), (name, spelled)


def test_reference_has_every_public_name_and_technique() -> None:
    page = reference_page()
    public = {name for name in kontext_fast.__all__ if not name.startswith("__")}
    techniques = {technique.__name__ for technique in discover().values()}
    headings = set(re.findall(r"^      heading: (\w+)$", page, re.MULTILINE))
    assert public | techniques <= headings


def test_environment_page_has_every_variable_that_is_read() -> None:
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    read = {name for source in sources for name in ENVIRON.findall(source)}
    assert {"KONTEXT_FAST_CACHE", "CUDA_VISIBLE_DEVICES"} <= read
    assert [name for name in sorted(read) if f"`{name}`" not in page] == []


def test_navigation_has_every_document() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2].partition("\n\n")[0]
    pages = re.findall(r": (\S+\.(?:md|html))$", nav, re.MULTILINE)
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(pages)
    generated = {"commands.md", "reference.md"}
    assert [
        page for page in pages if page not in generated and not (ROOT / hooks.repository_place(page)).exists()
    ] == []


def test_links_into_the_repository_lead_to_the_site() -> None:
    text = "[a](../CONTRIBUTING.md), [b](../results) and\n```\n[c](../CONTRIBUTING.md)\n```\n"
    page = type("Page", (), {"file": type("File", (), {"src_uri": "design.md"})})
    written = hooks.on_page_markdown(text, page)
    assert "[a](contributing.md), [b](results/index.md)" in written
    assert "[c](../CONTRIBUTING.md)" in written


def test_list_after_text_is_a_list_of_its_own() -> None:
    page = type("Page", (), {"file": type("File", (), {"src_uri": "design.md"})})
    text = "On yours:\n- first\n  goes on\n- second\n```\nText\n- no list\n```"
    assert hooks.on_page_markdown(text, page) == text.replace("yours:\n", "yours:\n\n")


def test_what_documents_link_to_is_in_the_site() -> None:
    found = set(hooks.linked_files(["docs/results.md", "docs/index.md"]))
    assert {"visualizations/hero.svg", "docs/quickstart.md", "CONTRIBUTING.md"} <= found
    assert any(name.endswith("/results/benchmark_results.json") for name in found)
    assert not any("__pycache__" in name for name in found)
