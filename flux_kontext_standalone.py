"""The service of the original project: `python flux_kontext_standalone.py [options of kontext serve]`.

Without a GPU it serves the bundled checkpoint `tiny`, unless another one is named. `POST /inference` takes the JSON of
the original; docs/serving.md has the rest.
"""

from __future__ import annotations

import os
import sys

from kontext_fast.cli.main import run
from kontext_fast.server.placement import default_devices


def main() -> int:
    arguments = sys.argv[1:]
    named = any(argument.startswith(("--checkpoint", "--config", "--help", "-h")) for argument in arguments)
    named = named or bool({"KONTEXT_CHECKPOINT", "KONTEXT_SERVE_CHECKPOINT", "KONTEXT_CONFIG"} & set(os.environ))
    if not named and default_devices() == ("cpu",):
        print("There is no GPU, so the checkpoint is tiny; --checkpoint chooses another one.", flush=True)  # noqa: T201
        arguments += ["--checkpoint", "tiny"]
    return run(["serve", *arguments])


if __name__ == "__main__":
    sys.exit(main())
