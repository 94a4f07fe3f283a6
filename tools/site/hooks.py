"""What mkdocs calls while it builds the site, so that one text serves both the repository's pages and the site.

The documents link to files of the repository beside them. Every such file becomes part of the site, and so does what it
links to; a link to a folder leads to the list of its files. Pages that the code writes are added.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from tools.site.code_pages import commands_page, reference_page

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs"

FROM_ROOT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Documents at the root that are pages of the site, and what they are called there."""

REPORTS = ("reports/index.html", "visualizations/quality/index.html")

_MARK = re.compile(r"^<!-- /?records: \w+ -->[ \t]*$", re.MULTILINE)
_RELATIVE = r"(?!\w+:|#|/)"
_LINK = re.compile(rf"(?<=\]\(){_RELATIVE}[^)#\s]+|(?:(?<=\bsrc=\")|(?<=\bhref=\")|(?<=\bsrcset=\")){_RELATIVE}[^\"#]+")
_FENCE = re.compile(r"^```.*?^```[ \t]*$", re.MULTILINE | re.DOTALL)
_LIST_ITEM = re.compile(r"(?:- |\d+\. )")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that the code writes, documents of the root, and all that pages link to."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "commands.md", content=commands_page()))
    files.append(File.generated(config, "reference.md", content=reference_page()))
    for asset in ("site.css", "site.js"):
        files.append(File.generated(config, asset, abs_src_path=str(Path(__file__).with_name(asset))))
    present = [f"{DOCS}/{file.src_uri}" for file in list(files) if (ROOT / DOCS / file.src_uri).is_file()]
    for source in linked_files([*present, *FROM_ROOT, *REPORTS]):
        place = site_place(source)
        if files.get_file_from_path(place) is None:
            path = ROOT / source
            if path.is_dir():
                files.append(File.generated(config, place, content=_folder_page(source)))
            else:
                files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links into the repository into links of the site, and blank lines where mkdocs wants them."""
    here = page.file.src_uri
    return _with_blank_lines(_relinked(_MARK.sub("\n", markdown), repository_place(here), here))


def on_post_page(output: str, **_: Any) -> str:
    """Name the theme's dialog of the search, which it leaves without a name for screen readers."""
    dialog = 'data-md-component="search" role="dialog"'
    return output.replace(dialog, f'{dialog} aria-label="Search"')


def linked_files(sources: list[str]) -> Iterator[str]:
    """`sources` and every file or folder of the repository that one of them links to, and so on.

    All are places from the root. What does not exist is left to mkdocs, which names the page and the link.
    """
    waiting, seen = list(sources), set(sources)
    while waiting:
        source = waiting.pop()
        yield source
        path = ROOT / source
        if path.suffix in (".md", ".html"):
            text = path.read_text(encoding="utf-8")
            found = {_from_root(source, link) for link in _links(_FENCE.sub("", text))}
        elif path.is_dir():
            found = {f"{source}/{name}" for name in _names(path)}
        else:
            continue
        new = {each for each in found if (ROOT / each).exists()} - seen
        seen |= new
        waiting += sorted(new)


def site_place(source: str) -> str:
    """Where a file or folder of the repository stands in the site, as a place below docs/."""
    if source in FROM_ROOT:
        return FROM_ROOT[source]
    if source.startswith(f"{DOCS}/"):
        return source.removeprefix(f"{DOCS}/")
    return f"{source}/index.md" if (ROOT / source).is_dir() else source


def repository_place(place: str) -> str:
    """The place in the repository of what stands at `place` of the site."""
    renamed = {site: source for source, site in FROM_ROOT.items()}
    if place in renamed:
        return renamed[place]
    if (ROOT / place).exists():
        return place
    folder = str(PurePosixPath(place).parent)
    is_list = place.endswith("/index.md") and (ROOT / folder).is_dir()
    return folder + "/." if is_list else f"{DOCS}/{place}"


def _relinked(text: str, source: str, here: str) -> str:
    def link(match: re.Match[str]) -> str:
        target = _from_root(source, match[0])
        if not (ROOT / target).exists():
            return match[0]
        return posixpath.relpath(site_place(target), posixpath.dirname(here) or ".")

    pieces, position = [], 0
    for fence in _FENCE.finditer(text):
        pieces += [_LINK.sub(link, text[position : fence.start()]), fence[0]]
        position = fence.end()
    return "".join([*pieces, _LINK.sub(link, text[position:])])


def _links(text: str) -> Iterator[str]:
    yield from (match[0] for match in _LINK.finditer(text))


def _from_root(source: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _names(folder: Path) -> list[str]:
    """Files of a folder that people read; images of records are many and shown elsewhere."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix != ".png"
        and not any(part.startswith((".", "__pycache__")) for part in path.parts[-2:])
    )


def _folder_page(source: str) -> str:
    names = _names(ROOT / source)
    rows = [f"- [{name}]({name}) ({os.path.getsize(ROOT / source / name) / 1000:,.0f} kB)" for name in names]
    return "\n".join([f"# {source}", "", *rows, ""])


def _with_blank_lines(text: str) -> str:
    """A list right after a line of text is one on GitHub; here it needs a blank line before it."""
    lines: list[str] = []
    in_fence = False
    for line in text.split("\n"):
        before = lines[-1] if lines else ""
        in_list = bool(_LIST_ITEM.match(before)) or before.startswith(" ")
        if not in_fence and _LIST_ITEM.match(line) and before.strip() and not in_list:
            lines.append("")
        in_fence ^= line.startswith("```")
        lines.append(line)
    return "\n".join(lines)
