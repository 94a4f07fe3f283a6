"""Discovery fails loudly: an optimization never just vanishes."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from kontext_fast.cli.main import run
from kontext_fast.discovery import classes
from kontext_fast.errors import InvalidInput, KontextError
from kontext_fast.optimizations import techniques
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.presets import PRESETS
from kontext_fast.optimizations.registry import Side, build, conflicts_by_name, discover
from kontext_fast.optimizations.techniques.solver import FittedSolver
from tests.conftest import AddPlugin
from tests.pipelines import small_pipeline
from tools.docs.blocks import optimizations
from tools.docs.doc_context import DocContext
from tools.docs.result_tree import find_published

TECHNIQUE = """
from kontext_fast.optimizations.base import Effect, Optimization, Phase

class {cls}(Optimization):
    name = "{name}"
    summary = "nothing"
    effect = Effect.EXACT
    phase = Phase.LAYOUT

    def apply(self, pipe, undo):
        return {{}}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    def make(**modules: str) -> ModuleType:
        folder = tmp_path / "made_up_package"
        folder.mkdir()
        for name, code in {"__init__": "", **modules}.items():
            (folder / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        return importlib.import_module("made_up_package")

    yield make
    for name in [name for name in sys.modules if name.startswith("made_up_package")]:
        del sys.modules[name]


def test_new_module_is_discovered_and_helpers_are_not(package: Callable[..., ModuleType]) -> None:
    imported = "from made_up_package.b import B\nHELPER = 1\n"
    made = package(b=TECHNIQUE.format(cls="B", name="second"), a=imported, c=TECHNIQUE.format(cls="C", name="first"))
    assert list(classes(made, Optimization, "optimization")) == ["first", "second"]


def test_module_that_does_not_import_is_an_error(package: Callable[..., ModuleType]) -> None:
    with pytest.raises(KontextError, match=r"made_up_package\.broken does not import.*no_such_module"):
        classes(package(broken="import no_such_module"), Optimization, "optimization")


def test_two_optimizations_of_one_name_are_an_error(package: Callable[..., ModuleType]) -> None:
    same = {key: TECHNIQUE.format(cls="Same", name="same") for key in ("one", "two")}
    with pytest.raises(KontextError, match=r"made_up_package\.one and made_up_package\.two both define"):
        classes(package(**same), Optimization, "optimization")


def test_optimizations_declare_what_they_are() -> None:
    for name, found in discover().items():
        assert found.name == name
        assert found.summary
        assert "\n" not in found.summary
        for conflict in found.conflicts:
            assert conflict.other in discover()
            assert set(conflict.when) <= set(found.model_fields)


def test_new_technique_is_a_preset_listed_and_documented(
    add_plugin: AddPlugin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_plugin(techniques, "dummy", TECHNIQUE.format(cls="Dummy", name="dummy"), discover)
    pipe = small_pipeline()
    with accelerate(pipe, "dummy", quiet=True) as acceleration:
        assert [applied.name for applied in acceleration.plan.applied] == ["dummy"]
    try:
        assert run(["presets", "--json"]) == 0
        listed = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert "dummy" in {preset["name"] for preset in listed["presets"]}
        assert "dummy" in {optimization["name"] for optimization in listed["optimizations"]}
        assert run(["doctor"]) == 0
        assert f"{len(listed['presets'])} of {len(listed['presets'])} presets run here" in capsys.readouterr().out
        assert "| `dummy` | nothing | exact |" in optimizations.render(DocContext(find_published(tmp_path)))
    finally:
        del PRESETS["dummy"]


def test_conflicts_are_listed_on_both_sides() -> None:
    sides, (reuse, cache) = conflicts_by_name(), FittedSolver.conflicts
    assert sides.keys() == discover().keys()
    assert sides["solver"][1:] == [Side("step_reuse", "solver", reuse), Side("first_block_cache", "solver", cache)]
    assert (sides["solver"][0].other, sides["solver"][0].declaring) == ("compile", "compile")
    assert sides["step_reuse"] == [Side("solver", "solver", reuse)]
    with pytest.raises(InvalidInput) as caught:
        build("fuse_kqv", {})
    assert str(caught.value) == "There is no optimization 'fuse_kqv'; did you mean fuse_qkv or fused_vae?"
