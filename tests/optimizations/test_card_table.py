"""The table of cards in docs/compatibility.md says "refused" exactly where a plan is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kontext_fast.engine import dispatch
from kontext_fast.errors import Refused
from kontext_fast.optimizations.presets import resolve
from kontext_fast.pipeline.device import Machine

PAGE = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text(encoding="utf-8")
HEADINGS = re.search(r"^\| device \|(.*)\|$", PAGE, re.MULTILINE)
DEVICES = {
    "H100": ("cuda", [(9, 0)]),
    "other cards of compute capability 9.0 or later": ("cuda", [(9, 0), (10, 0), (12, 0)]),
    "Ada: compute capability 8.9": ("cuda", [(8, 9)]),
    "Ampere: compute capability 8.0 and 8.6": ("cuda", [(8, 0), (8, 6)]),
    "older than 8.0": ("cuda", [(7, 0), (7, 5)]),
    "Apple (MPS)": ("mps", [None]),
    "a CPU": ("cpu", [None]),
}


@pytest.mark.parametrize("device", DEVICES)
def test_cards_are_refused_where_the_page_says_so(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "has_fused_kernels", lambda: True)
    monkeypatch.setattr(dispatch, "_fused", lambda: type("Kernels", (), {"refusal": staticmethod(lambda: None)}))
    kind, capabilities = DEVICES[device]
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {device}"))
    assert HEADINGS is not None
    for heading, cell in zip(HEADINGS[1].split("|"), row.strip("|").split("|")[1:], strict=True):
        for preset in re.findall(r"`(\w+)`", heading):
            says = "refused" in cell and f"but for `{preset}`" not in cell
            for capability in capabilities:
                assert refused(preset, kind, capability) == says, (preset, capability, cell)


def refused(preset: str, kind: str, capability: tuple[int, int] | None) -> bool:
    machine = Machine(
        device=kind, gpu="GPU" if kind == "cuda" else None, capability=capability, memory_bytes=2**40, cxx="g++",
        cc="gcc", triton=True, torch="2.13.0", platform="linux-x86_64",
    )  # fmt: skip
    try:
        resolve(preset, machine)
    except Refused:
        return True
    return False


def test_tests_that_the_page_names_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 20
    assert named <= {file.stem for file in Path(__file__).parents[1].rglob("test_*.py")}
    families = [line for line in PAGE.splitlines() if line.startswith("| ") and line.count("|") == 6]
    assert len([line for line in families if "`test_" in line.split("|")[5]]) >= 16
