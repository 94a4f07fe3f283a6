from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kontext_fast import bench
from kontext_fast.bench import bundled_suites
from kontext_fast.bench.schedule import Schedule
from kontext_fast.bench.suites import Suite, SuiteFile, read_suite
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import Cell
from tools.docs.blocks import suites as suites_table
from tools.docs.doc_context import DocContext
from tools.docs.result_tree import find_published

GOOD = """\
name = "mine"
presets = ["baseline", "classic"]
rounds = 2
items = 2
calls = 4
max_warmup = 1
stable_within = 0.05
steps = [4, 28]
sizes = ["native", "256x256"]
guidance = 2.5
deadline_s = 60
seed = 7

[tiny]
rounds = 3
steps = [2]
"""


def mistake(old: str, new: str) -> str:
    assert old in GOOD
    with pytest.raises(InvalidInput) as caught:
        SuiteFile(GOOD.replace(old, new), "mine.toml")
    return str(caught.value)


def test_suite_with_a_byte_order_mark_is_the_same(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "mine.toml").write_text(GOOD, encoding=encoding)
        assert read_suite(str(tmp_path / "mine.toml")).resolve("tiny") == SuiteFile(GOOD, "mine.toml").resolve("tiny")


def test_section_overrides_values_of_its_checkpoint_only() -> None:
    suite = SuiteFile(GOOD, "mine.toml")
    assert (suite.resolve("tiny").rounds, suite.resolve("tiny").steps) == (3, (2,))
    assert (suite.resolve("hub").rounds, suite.resolve("hub").steps) == (2, (4, 28))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rounds = 2", "rounds = 0", "mine.toml, line 3: rounds: "),
        ("rounds = 3", "rounds = 0", "mine.toml, line 15: tiny.rounds: "),
        ("steps = [2]", "steps = [0]", "mine.toml, line 16: tiny.steps: "),
        ("seed = 7", "sead = 7", "mine.toml, line 12: sead: there is no such key"),
        ("seed = 7\n", "", "mine.toml: seed: this key is missing"),
        ("steps = [2]", 'name = "other"', "mine.toml, line 16: tiny.name: "),
        ('"256x256"', '"250x250"', "mine.toml, line 9: sizes: size '250x250' is not a positive multiple of 16"),
        ('"256x256"', '"256"', "mine.toml, line 9: sizes: "),
        ('"classic"', '"baseline"', "mine.toml, line 2: presets: baseline is listed twice"),
        ("calls = 4", "calls = 1", "mine.toml, line 5: calls: 1 calls cannot measure 2 items"),
        ("[tiny]", "[tinny]", "mine.toml, line 14: tinny: there is no such key"),
    ],
)
def test_mistake_names_its_line(old: str, new: str, message: str) -> None:
    assert mistake(old, new).startswith(message)


def test_broken_toml_names_its_line() -> None:
    assert "line 3" in mistake("rounds = 2", "rounds = ")


def test_hash_depends_only_on_what_is_run() -> None:
    suite = SuiteFile(GOOD, "mine.toml").resolve("hub")
    same = SuiteFile(GOOD.replace('"mine"', '"yours"').replace("\n", "  # why\n", 1), "yours.toml").resolve("hub")
    assert same.sha256 == suite.sha256
    for changes in ({"rounds": 5}, {"steps": (4,)}, {"seed": 8}, {"presets": ("classic", "baseline")}):
        assert suite.override(**changes).sha256 != suite.sha256


def test_suite_is_frozen() -> None:
    suite = SuiteFile(GOOD, "mine.toml").resolve("hub")
    with pytest.raises(ValueError, match="frozen"):
        suite.rounds = 9


def test_override_validates_and_keeps_other_values() -> None:
    suite = SuiteFile(GOOD, "mine.toml").resolve("hub")
    assert suite.override(rounds=None) == suite
    assert suite.override(items=9).calls == 9
    with pytest.raises(InvalidInput, match="rounds"):
        suite.override(rounds=0)


def test_bundled_suites_are_valid_for_all_checkpoint_kinds() -> None:
    assert "quick" in bundled_suites()
    for name in bundled_suites():
        for kind in ("tiny", "random", "folder", "hub"):
            suite = read_suite(name).resolve(kind)
            assert isinstance(suite, Suite)
            assert suite.name == name
            assert Schedule(suite).remaining([], None)
            if kind != "tiny" and not name.startswith("card-"):
                assert suite.steps == (28,)


def test_tiny_suites_have_the_shape_of_the_full_size_ones() -> None:
    for name in bundled_suites():
        tiny, real = (read_suite(name).resolve(kind) for kind in ("tiny", "hub"))
        assert [(tier.name, len(tier.cells)) for tier in tiny.tiers] == [
            (tier.name, len(tier.cells)) for tier in real.tiers
        ]
        assert (tiny.ablate, tiny.compile_caches, tiny.control) == (real.ablate, real.compile_caches, real.control)


def test_full_suite_is_a_star_and_a_grid_without_duplicates() -> None:
    tiers = read_suite("full").resolve("hub").tiers
    assert [tier.name for tier in tiers] == ["centre", "sizes", "steps", "batch", "text-to-image", "grid"]
    cells = [cell for tier in tiers for cell in tier.cells]
    assert cells[0] == Cell(mode="edit", size="1024x1024", steps=28, batch=1)
    assert len(cells) == len(set(cells))
    edits = {(cell.size, cell.steps) for cell in cells if (cell.mode, cell.batch) == ("edit", 1)}
    assert len(edits) == 5 * 4
    assert sorted(cell.batch for cell in cells if cell.batch > 1) == [2, 4]
    assert [cell for cell in cells if cell.mode == "text-to-image"] == [
        Cell(mode="text-to-image", size="1024x1024", steps=28, batch=1)
    ]


SWEEPS = """
[[sweeps]]
name = "sizes"
priority = 1
sizes = ["512x512"]

[[sweeps]]
name = "steps"
priority = 2
steps = [10]
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("priority = 2", "priority = 0", "mine.toml, line 25: sweeps.priority: "),
        ("steps = [10]", "steps = [10, -1]", "mine.toml, line 26: sweeps.steps: "),
        ("steps = [10]", "stops = [10]", "mine.toml, line 26: sweeps.stops: there is no such key"),
        ("priority = 2\n", "", "mine.toml, line 23: sweeps.priority: this key is missing"),
        ('"512x512"', '"500x500"', "mine.toml, line 21: sweeps.sizes: "),
    ],
)
def test_mistake_in_a_sweep_names_its_line(old: str, new: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        SuiteFile((GOOD + SWEEPS).replace(old, new), "mine.toml")
    assert str(caught.value).startswith(message)


def test_sweeps_are_ordered_and_keep_the_centres_values() -> None:
    text = GOOD.replace("[tiny]", "[hub]") + SWEEPS.replace("priority = 1", "priority = 3").replace("[[", "[[tiny.")
    first, second, third = SuiteFile(text, "mine.toml").resolve("tiny").tiers
    assert [cell.steps for cell in first.cells] == [4, 28, 4, 28]
    assert [(cell.size, cell.steps) for cell in second.cells] == [("native", 10)]
    assert [(cell.size, cell.steps) for cell in third.cells] == [("512x512", 4)]


def test_warm_cache_needs_a_cold_one() -> None:
    with pytest.raises(InvalidInput, match='compile_caches: "warm" needs "cold"'):
        SuiteFile(GOOD.replace("seed = 7", 'seed = 7\ncompile_caches = ["warm"]'), "mine.toml")


def test_unknown_suite_names_the_existing_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"choose ablation or card or .* or cold or demo or full or quick"):
        read_suite("quik")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_suite(str(tmp_path / "missing.toml"))


def test_user_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD)
    assert read_suite(str(tmp_path / "mine.toml")).resolve("tiny").name == "mine"


def test_new_suite_is_bundled_and_in_the_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suites = shutil.copytree(bench.SUITES, tmp_path / "suites")
    (suites / "dummy.toml").write_text(GOOD.replace('"mine"', '"dummy"'))
    monkeypatch.setattr(bench, "SUITES", suites)
    monkeypatch.setattr("kontext_fast.bench.suites.SUITES", suites)
    assert read_suite("dummy").resolve("tiny").steps == (2,)
    assert "`dummy`" in suites_table.render(DocContext(find_published(tmp_path)))
    show = "import sys; from pathlib import Path; from kontext_fast import bench; bench.SUITES = Path(sys.argv[1]); "
    show += "from kontext_fast.cli.main import run; run(['bench', '--help'])"
    shown = subprocess.run([sys.executable, "-c", show, str(suites)], capture_output=True, text=True, check=True)
    assert "dummy" in shown.stdout
