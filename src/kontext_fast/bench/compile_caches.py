"""Where the runs of one configuration keep what they compiled, so that cold and warm are what they are called."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from kontext_fast.bench.schedule import Configuration
from kontext_fast.errors import InvalidInput

FOLDER = ".compile-caches"

_VARIABLES = {
    "KONTEXT_FAST_CACHE": "artifacts",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}
"""Every place where compiled code is kept between processes."""


class CompileCaches:
    """Folders below a result folder, of which each cold run empties its own and the warm run after it reads it."""

    def __init__(self, out: Path) -> None:
        self._folder = out.absolute() / FOLDER

    def variables(self, configuration: Configuration) -> dict[str, str]:
        """What the process of `configuration` is to find in its environment. A cold one finds empty folders.

        Raises InvalidInput where a warm one would find nothing.
        """
        if configuration.compile_cache == "user":
            return {}
        folder = self._folder / re.sub(r"\W", "_", configuration.name)
        if configuration.compile_cache == "cold":
            shutil.rmtree(folder, ignore_errors=True)
        elif not folder.is_dir():
            raise InvalidInput(
                f"The compiled code that the cold run of {configuration.name} left is gone; "
                "measure again in a new folder."
            )
        for name in _VARIABLES.values():
            (folder / name).mkdir(parents=True, exist_ok=True)
        return {variable: str(folder / name) for variable, name in _VARIABLES.items()}

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
