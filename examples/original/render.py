"""`python -m examples.original.render [FOLDER]`: write the page and the two charts, examples/original by default."""

from __future__ import annotations

import sys
from pathlib import Path

from examples.original.charts import analysis_picture, summary_picture
from examples.original.figures import published
from examples.original.page import page
from kontext_fast.records.store import write_atomically

FOLDER = Path("examples/original")


def write(folder: Path) -> None:
    """Write README.md, h100_summary.png and h100_cost_analysis.png into `folder`."""
    of = published()
    write_atomically(folder / "README.md", page(of).encode())
    write_atomically(folder / "h100_summary.png", summary_picture(of).png())
    write_atomically(folder / "h100_cost_analysis.png", analysis_picture(of).png())


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
