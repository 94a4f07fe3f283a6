"""Mutation testing with mutmut's changes, whole or of a sample, and what tests did not notice, as differences.

    python -m tools.mutants ['kontext_fast.records.*' ...] [--sample 350] [--seed 20261126] [--tests tests/records]

The same seed takes the same mutants of the same sources. `[tool.mutmut]` in pyproject.toml says which modules are
changed and which tests run: of these, the ones of the packages that are changed, or those that are named.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import chdir, redirect_stdout
from fnmatch import fnmatch
from io import StringIO
from pathlib import Path

from tools.forked_tests import SURVIVED, ForkedTests

FOLDER = Path("mutants")


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


def _make_mutants() -> list[str]:
    """Writes all changes of the sources below `FOLDER`, beside the tests; the paths of the tests that are to run."""
    from mutmut.__main__ import create_mutants
    from mutmut.configuration import config
    from mutmut.utils.file_utils import copy_also_copy_files, copy_src_dir, setup_source_paths

    os.environ["MUTANT_UNDER_TEST"] = "mutant_generation"
    FOLDER.mkdir(exist_ok=True)
    with redirect_stdout(StringIO()):
        copy_src_dir()
        copy_also_copy_files()
        create_mutants(1)
        setup_source_paths()
    return list(config().pytest_add_cli_args_test_selection)


def _take_reached() -> set[str]:
    from mutmut.state import state

    functions = set(state()._stats)
    state()._stats.clear()
    return functions


def _run(names: Sequence[str], tests: Sequence[str], seconds: float, processes: int) -> dict[str, int]:
    """The code of each of `names` that ran, by `tests` in forks of this process, which imports the changed sources."""
    import pytest
    from hypothesis import settings
    from mutmut.configuration import config

    settings.register_profile("mutants", derandomize=True, database=None, phases=("explicit", "generate"))
    settings.load_profile("mutants")
    forked = ForkedTests(names, seconds, _take_reached, processes)
    with chdir(FOLDER):
        pytest.main(["--rootdir=.", *config().pytest_add_cli_args, *tests], plugins=[forked])
    return forked.outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("patterns", nargs="*")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=20261126)
    parser.add_argument("--tests", nargs="+", default=[])
    parser.add_argument("--seconds", type=float, default=20, help="of tests per change; the quickest come first")
    parser.add_argument("--processes", type=int, default=1, help="that try changes at once, after one run of the tests")
    options = parser.parse_args(arguments)
    selection = _make_mutants()
    names = chosen(list(codes(FOLDER)), options.patterns, options.sample, options.seed)
    if not names:
        print("Nothing was changed: give a pattern of the modules in [tool.mutmut].")
        return 2
    packages = {name.split(".")[1] for name in names}
    tests = options.tests or [path for path in selection if path.split("/")[1] in packages]
    outcomes = _run(names, tests, options.seconds, options.processes)
    if len(outcomes) < len(names):
        print(f"{len(names) - len(outcomes)} of {len(names)} were not run: see the output of pytest.")
        return 1
    for name, lines in differences(FOLDER, [name for name in names if outcomes[name] == SURVIVED]):
        print(f"{name}\n{lines}")
    for module, count in Counter(name.rpartition(".")[0] for name in names).items():
        noticed = sum(outcomes[name] != SURVIVED for name in names if name.rpartition(".")[0] == module)
        print(f"{module}: {noticed} of {count} noticed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
