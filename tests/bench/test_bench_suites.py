from __future__ import annotations

from pathlib import Path

import pytest

from kontext_fast.bench.suites import Suite, SuiteFile, bundled_suites, kind_of, read_suite
from kontext_fast.bench.toml_lines import line_of
from kontext_fast.errors import InvalidInput

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


def test_a_section_overrides_the_top_for_its_checkpoint_only() -> None:
    suite = SuiteFile(GOOD, "mine.toml")
    assert (suite.resolve("tiny").rounds, suite.resolve("tiny").steps) == (3, (2,))
    assert (suite.resolve("hub").rounds, suite.resolve("hub").steps) == (2, (4, 28))


@pytest.mark.parametrize(
    ("old", "new", "said"),
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
def test_a_mistake_names_its_line(old: str, new: str, said: str) -> None:
    assert mistake(old, new).startswith(said)


def test_broken_toml_names_its_line() -> None:
    assert "line 3" in mistake("rounds = 2", "rounds = ")


def test_the_hash_follows_what_is_run_and_nothing_else() -> None:
    suite = SuiteFile(GOOD, "mine.toml").resolve("hub")
    same = SuiteFile(GOOD.replace('"mine"', '"yours"').replace("\n", "  # why\n", 1), "yours.toml").resolve("hub")
    assert same.sha256 == suite.sha256
    for changes in ({"rounds": 5}, {"steps": (4,)}, {"seed": 8}, {"presets": ("classic", "baseline")}):
        assert suite.override(**changes).sha256 != suite.sha256


def test_a_suite_cannot_be_changed() -> None:
    suite = SuiteFile(GOOD, "mine.toml").resolve("hub")
    with pytest.raises(ValueError, match="frozen"):
        suite.rounds = 9


def test_overriding_checks_again_and_leaves_the_rest() -> None:
    suite = SuiteFile(GOOD, "mine.toml").resolve("hub")
    assert suite.override(rounds=None) == suite
    assert suite.override(items=9).calls == 9
    with pytest.raises(InvalidInput, match="rounds"):
        suite.override(rounds=0)


def test_every_bundled_suite_is_valid_for_every_kind_of_checkpoint() -> None:
    assert "quick" in bundled_suites()
    for name in bundled_suites():
        for kind in ("tiny", "random", "folder", "hub"):
            suite = read_suite(name).resolve(kind)
            assert isinstance(suite, Suite)
            assert suite.name == name
            assert suite.steps == (28,)


def test_an_unknown_suite_names_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="choose quick"):
        read_suite("quik")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_suite(str(tmp_path / "missing.toml"))


def test_a_users_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD)
    assert read_suite(str(tmp_path / "mine.toml")).resolve("tiny").name == "mine"


def test_kinds_of_checkpoints(tmp_path: Path) -> None:
    assert [kind_of(name) for name in ("tiny", "random", str(tmp_path), "org/name")] == [
        "tiny",
        "random",
        "folder",
        "hub",
    ]


def test_line_of_a_missing_key_is_that_of_its_section() -> None:
    assert line_of(GOOD, "tiny.seed") == 14
    assert line_of(GOOD, "nothing") is None
