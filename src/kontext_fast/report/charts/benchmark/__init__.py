"""Charts of a benchmark. A module defines `draw(report: Report) -> Chart`, `FILE` and `SECTION`."""
