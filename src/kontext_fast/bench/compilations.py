"""How many graphs torch.compile has compiled in this process."""

from __future__ import annotations

import sys


def graphs_compiled() -> int:
    """Since the process began, recompilations included; 0 where nothing has asked for compilation yet."""
    # Importing it takes seconds, and whoever compiles has imported it.
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo is not None else 0
