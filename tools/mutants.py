"""Mutation testing with mutmut, whole or of a sample, and what tests did not notice, as differences.

    python -m tools.mutants ['kontext_fast.records.*' ...] [--sample 350] [--seed 20261126]

The same seed takes the same mutants of the same sources. `[tool.mutmut]` in pyproject.toml says which modules are
changed and which tests run.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

FOLDER = Path("mutants")
NOTICED = (1, 3, -24, 24, 36)
"""Exit codes of tests that failed, and of those that ran out of time."""


def codes(folder: Path) -> dict[str, int | None]:
    """The exit code of the tests of every mutant below `folder`, None where they did not run."""
    files = sorted(folder.rglob("*.meta"))
    return {name: code for file in files for name, code in json.loads(file.read_text())["exit_code_by_key"].items()}


def chosen(names: Sequence[str], patterns: Sequence[str], sample: int | None, seed: int) -> list[str]:
    """Those that a pattern names, or all without one; of more than `sample` so many, drawn by `seed`."""
    matching = [name for name in names if not patterns or any(fnmatch(name, pattern) for pattern in patterns)]
    if sample is None or sample >= len(matching):
        return matching
    return sorted(random.Random(seed).sample(matching, sample))


def differences(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each of `names` with the lines that it changed."""
    for meta in sorted(folder.rglob("*.meta")):
        of_file = set(json.loads(meta.read_text())["exit_code_by_key"]) & set(names)
        if not of_file:
            continue
        source = meta.with_suffix("").read_text()
        lines = source.splitlines()
        bodies = {
            node.name: lines[node.lineno : node.end_lineno]
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        for name in sorted(of_file):
            function = name.rpartition(".")[2]
            before = bodies.get(f"{function.rpartition('__mutmut_')[0]}__mutmut_orig", [])
            changed = difflib.unified_diff(before, bodies.get(function, []), lineterm="", n=0)
            yield name, "\n".join(line for line in changed if not line.startswith(("---", "+++", "@@")))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("patterns", nargs="*")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=20261126)
    options = parser.parse_args(arguments)
    mutmut = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", "2"]
    # No mutant has this name: all are made, and none is run.
    subprocess.run([*mutmut, "none"], check=False, capture_output=True)
    names = chosen(list(codes(FOLDER)), options.patterns, options.sample, options.seed)
    if not names:
        print("Nothing was changed: give a pattern of the modules in [tool.mutmut], and see mutmut's own output.")
        return 2
    done = subprocess.run([*mutmut, *names], check=False)
    outcomes = codes(FOLDER)
    if left := [name for name in names if outcomes[name] is None]:
        print(f"{len(left)} of {len(names)} were not run, since mutmut ended with {done.returncode}: see its output.")
        return 1
    for name, lines in differences(FOLDER, [name for name in names if outcomes[name] not in NOTICED]):
        print(f"{name}\n{lines}")
    for module, count in Counter(name.rpartition(".")[0] for name in names).items():
        noticed = sum(outcomes[name] in NOTICED for name in names if name.rpartition(".")[0] == module)
        print(f"{module}: {noticed} of {count} noticed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
