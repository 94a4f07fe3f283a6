"""Where commands write: results to stdout, remarks and progress to stderr, files to a folder that is new or empty."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from kontext_fast.errors import InvalidInput


def say(sentence: str) -> None:
    """Print a remark to stderr, since stdout is for results."""
    print(sentence, file=sys.stderr)


def print_json(result: object) -> None:
    """Print the result as one line, which has to be the last one on stdout."""
    print(json.dumps(result))


def result_folder(out: Path | None, command: str, *, resume: bool = False) -> Path:
    """`out`, or a new name of the form kontext-COMMAND-TIME.

    Raises InvalidInput if the folder holds anything, but for `resume`, which needs an `out`.
    """
    if resume and out is None:
        raise InvalidInput("--resume needs the folder to continue in; add --out.")
    folder = out or Path(f"kontext-{command}-{datetime.now():%Y%m%d-%H%M%S}")
    if resume:
        return folder
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file; give --out a new or empty folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise InvalidInput(f"{folder} is not empty; give --out a new or empty folder.")
    return folder


def command_line(command: str, options: Mapping[str, str | float | bool | None]) -> str:
    """What to type to run `command` again; an option that is None or False is left out, one that is True is a flag."""
    words = ["kontext", command]
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{name}")
        if value is not True:
            words.append(value if isinstance(value, str) else f"{value:g}")
    return shlex.join(words)
