"""What the counts of a tree are, and that this tree keeps its rules: imports point down, an extension is one file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools.count import count, read_layers

ROOT = Path(__file__).parents[2]


def test_upward_imports_and_cycles_are_counted(tmp_path: Path) -> None:
    modules = {
        "__init__": "",
        "report/__init__": "from kontext_fast.cost import billing\n",
        "report/page": "import kontext_fast.report\n\nPAGE = 'doctor'\n",
        "cost/billing": "def late():\n    from kontext_fast.report.page import PAGE\n    return PAGE\n",
        "cost/a": "from kontext_fast.cost import b\n",
        "cost/b": "from kontext_fast.cost.a import b\n",
    }
    for name, text in modules.items():
        file = tmp_path / "src" / "kontext_fast" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    counts = count(tmp_path, {"report": 1, "cost": 0})
    assert counts.lines["kontext_fast.cost.billing"] == 3
    assert counts.upward_imports == [("kontext_fast.cost.billing", "kontext_fast.report.page")]
    assert counts.package_cycles == [["cost", "report"]]
    report = ["kontext_fast.report", "kontext_fast.report.page"]
    assert counts.module_cycles == [
        ["kontext_fast.cost.a", "kontext_fast.cost.b"],
        ["kontext_fast.cost.billing", *report],
    ]
    assert counts.files_naming["command"] == {"package": 1, "tests": 0, "scripts": 0, "docs": 0}


def test_repository_imports_down_and_extensions_are_one_file() -> None:
    counts = count(ROOT, read_layers(ROOT / "pyproject.toml"))
    assert (counts.upward_imports, counts.package_cycles, counts.module_cycles) == ([], [], [])
    isolated = {"technique", "attention kernel", "metric", "chart of a benchmark", "peer", "command", "price row"}
    for kind in (*isolated, "chart of a verification"):
        assert counts.files_naming[kind]["package"] == 1, kind


def test_script_needs_nothing_but_python() -> None:
    script = [sys.executable, "-I", "-S", str(ROOT / "tools" / "count.py"), str(ROOT)]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    assert "imports that point up: 0" in done.stdout
