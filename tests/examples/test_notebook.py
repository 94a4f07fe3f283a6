"""The notebook runs from its first cell to its last, in a kernel of its own, and shows what it promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import needs

nbformat = pytest.importorskip("nbformat", reason=needs.DOCS)
nbclient = pytest.importorskip("nbclient", reason=needs.DOCS)

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_edit.ipynb"


@pytest.mark.slow
def test_notebook_runs_on_a_cpu(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # what it shows depends on the machine
    client = nbclient.NotebookClient(
        notebook, timeout=250, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = [output.data for output in outputs if "data" in output]
    assert sum("<img" in data.get("text/html", "") for data in shown) == 2  # both results as pictures
    assert any("image/png" in data for data in shown)
    assert "9 of 28 steps computed" in " ".join(data["text/plain"] for data in shown)
    printed = "".join(output.get("text", "") for output in outputs)
    assert "pixels differ by" in printed
    (judged,) = (data["text/plain"] for data in shown if "Judgement" in data["text/plain"])
    assert judged.count("done=True, kept=True") == 2
