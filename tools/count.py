"""Sizes and imports of the package, and how many files name an extension, counted in any tree.

    python tools/count.py [ROOT] [--json]

ROOT is the tree to count (default: the working directory); the layers are those of the tree that this script is in, so
that two trees are counted alike. The script needs nothing but Python. Every import counts, late ones and those for type
checkers included. A file names an extension where code or data does so; prose in it does not count.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import statistics
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

PACKAGE = "kontext_fast"
FORMER_NAMES = {"items": "datasets"}
"""Packages of older trees by the layer in which they stand today."""

EXTENSIONS: Mapping[str, tuple[str, ...]] = {
    "technique": ("prompt_cache", "PromptCache"),
    "attention kernel": ("flash3_fp8",),
    "fused kernel": ("group_norm_silu",),
    "metric": ("mask_preservation", "MaskPreservation"),
    "chart of a benchmark": ("stage_breakdown",),
    "chart of a verification": ("score_distributions", "quality_score_distributions"),
    "peer": ("peer:magcache", "magcache"),
    "checkpoint kind": ('"random"', "RANDOM"),
    "command": ("doctor",),
    "suite": ('"quick"',),
    "price row": ("runpod-secure-h200",),
}
"""For each kind of extension, the names of one of it that older trees have, too. A name counts as an identifier, the
name of a file, or a whole string; one in quotes as a string alone, since it is a common word."""

_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "package": ("src/**/*.py", "src/**/*.toml", "src/**/*.j2"),
    "tests": ("tests/**/*.py",),
    "scripts": ("scripts/**/*.py", "tools/**/*.py", "benchmarks/**/*.py", "research/**/*.py", "examples/**/*.py"),
    "docs": ("*.md", "docs/*.md"),
}


@dataclass(frozen=True)
class Counts:
    """What was counted in one tree."""

    lines: dict[str, int]
    """Of every module."""
    upward_imports: list[tuple[str, str]]
    """Importing and imported module."""
    package_cycles: list[list[str]]
    module_cycles: list[list[str]]
    files_naming: dict[str, dict[str, int]]
    """By kind of extension and folder."""


def count(root: Path, layers: Mapping[str, int]) -> Counts:
    """The counts of the tree in `root`; `layers` as `read_layers` returns them."""
    files = {_module(path, root / "src"): path for path in sorted((root / "src" / PACKAGE).rglob("*.py"))}
    imports = {name: sorted(set(_imports(path, files)) - {name}) for name, path in files.items()}
    packages: dict[str, set[str]] = {package_of(name): set() for name in files}
    for importer, targets in imports.items():
        packages[package_of(importer)] |= {package_of(target) for target in targets} - {package_of(importer)}
    return Counts(
        lines={name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()},
        upward_imports=[
            (importer, target)
            for importer, targets in imports.items()
            for target in targets
            if _height(importer, layers) < _height(target, layers)
        ],
        package_cycles=cycles(packages),
        module_cycles=cycles(imports),
        files_naming={kind: _files_naming(names, root) for kind, names in EXTENSIONS.items()},
    )


def read_layers(pyproject: Path) -> dict[str, int]:
    """The height of every package, from the contract of import-linter: 0 is the lowest."""
    contracts = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    heights = {name.strip(): height for height, row in enumerate(reversed(layers)) for name in row.split(":")}
    return heights | {old: heights[new] for old, new in FORMER_NAMES.items()}


def cycles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The groups of nodes that reach each other, in alphabetical order; `graph` has the successors of every node."""
    reached = {node: _reachable(node, graph) for node in graph}
    groups = {
        tuple(sorted(other for other in reached[node] if node in reached[other]))
        for node in graph
        if node in reached[node]
    }
    return [list(group) for group in sorted(groups)]


def _reachable(start: str, graph: Mapping[str, Iterable[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += graph[node]
    return reached


def _module(path: Path, source: Path) -> str:
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """The direct child of the package that `module` is or belongs to; of the package itself, its own name."""
    return module.split(".")[1] if "." in module else module


def _height(module: str, layers: Mapping[str, int]) -> int:
    # The package itself exports what its parts define, so it is above them all.
    return layers.get(package_of(module), len(layers))


def _imports(path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    """The modules of the package that a module imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                # What is imported from a package is a module of it or something that the package defines.
                yield from [name for name in (f"{node.module}.{alias.name}", str(node.module)) if name in files][:1]


def _files_naming(names: Iterable[str], root: Path) -> dict[str, int]:
    """How many files of each of `_FOLDERS` name one of `names`."""
    return {
        folder: sum(_is_named_in(path, names) for pattern in patterns for path in root.glob(pattern))
        for folder, patterns in _FOLDERS.items()
    }


def _is_named_in(path: Path, names: Iterable[str]) -> bool:
    if path.resolve() == Path(__file__).resolve():
        return False
    text, strings = path.read_text(encoding="utf-8"), {name.strip('"') for name in names}
    if not any(name in text or name == path.stem for name in strings):
        return False
    if path.suffix != ".py":
        return path.stem in strings or any(re.search(rf"[\"`]{re.escape(name)}[\"`]", text) for name in strings)
    identifiers = {name for name in names if not name.startswith('"')}
    return path.stem in identifiers or any(
        token.string in identifiers if token.type == tokenize.NAME else token.string.strip("\"'") in strings
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type in (tokenize.NAME, tokenize.STRING)
    )


def main() -> int:
    """Print the counts as Markdown or JSON; exit code 1 where an import points up or closes a cycle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path, default=Path.cwd())
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    counts = count(arguments.root, read_layers(Path(__file__).parents[1] / "pyproject.toml"))
    print(json.dumps(asdict(counts)) if arguments.json else as_markdown(counts))
    return int(bool(counts.upward_imports or counts.package_cycles or counts.module_cycles))


def as_markdown(counts: Counts) -> str:
    """Two tables, of packages and of kinds of extension, and the imports that break a rule."""
    packages: dict[str, list[int]] = {}
    for module, length in counts.lines.items():
        packages.setdefault(package_of(module), []).append(length)
    total = sum(counts.lines.values())
    rows = ["| package | modules | median | lines | share |", "|---|---|---|---|---|"]
    for name, lengths in [*sorted(packages.items()), ("all", list(counts.lines.values()))]:
        median, lines = statistics.median(lengths), sum(lengths)
        rows.append(f"| {name} | {len(lengths)} | {median:.0f} | {lines} | {lines / total:.0%} |")
    rows += ["", f"| files that name one | {' | '.join(_FOLDERS)} |", f"|---{'|---' * len(_FOLDERS)}|"]
    rows += [f"| {kind} | {' | '.join(map(str, per.values()))} |" for kind, per in counts.files_naming.items()]
    rows += ["", f"imports that point up: {len(counts.upward_imports)}"]
    rows += [f"- {importer} -> {target}" for importer, target in counts.upward_imports]
    for title, groups in (("packages", counts.package_cycles), ("modules", counts.module_cycles)):
        rows += [f"import cycles between {title}: {len(groups)}", *(f"- {', '.join(group)}" for group in groups)]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
