"""Which mutants a sample takes, and what is said of those that no test noticed."""

from __future__ import annotations

import json
from pathlib import Path

from tools.mutants import chosen, codes, differences

SOURCE = """
def x_half__mutmut_orig(value):
    # as it was
    return value / 2
def x_half__mutmut_1(value):
    # as it was
    return value * 2
class Store:
    def xǁStoreǁput__mutmut_orig(self):
        return None
    def xǁStoreǁput__mutmut_1(self):
        return 1
"""


def test_unnoticed_mutants_are_shown_by_what_they_changed(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "module.py").write_text(SOURCE)
    outcomes = {"module.x_half__mutmut_1": 0, "module.xǁStoreǁput__mutmut_1": 1}
    (tmp_path / "src" / "module.py.meta").write_text(json.dumps({"exit_code_by_key": outcomes}))
    assert codes(tmp_path) == outcomes
    assert list(differences(tmp_path, ["module.x_half__mutmut_1"])) == [
        ("module.x_half__mutmut_1", "-    return value / 2\n+    return value * 2")
    ]
    assert [name for name, _ in differences(tmp_path, list(outcomes))] == list(outcomes)


def test_sample_is_the_same_for_the_same_seed() -> None:
    names = [f"a.x_f__mutmut_{number}" for number in range(100)] + ["b.x_g__mutmut_1"]
    sample = chosen(names, ["a.*"], 10, 7)
    assert len(set(sample)) == 10
    assert sample == sorted(sample) == chosen(names, ["a.*"], 10, 7) != chosen(names, ["a.*"], 10, 8)
    assert set(sample) <= set(names[:100])
    assert chosen(names, ["b.*"], 10, 7) == names[-1:]
    assert chosen(names, [], None, 7) == names
