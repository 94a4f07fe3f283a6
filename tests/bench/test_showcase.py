"""One image under several presets: what is shown of each, and that the pipeline is as before."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kontext_fast
from kontext_fast.bench.showcase import Shot, Showcase, default_presets, show_plans
from kontext_fast.errors import InvalidInput, OutOfMemory, Refused
from kontext_fast.optimizations.acceleration import accelerate, current, resolve_on
from kontext_fast.optimizations.presets import PRESETS, Plan
from kontext_fast.optimizations.techniques.engine import Engine
from kontext_fast.optimizations.techniques.offload import Offload
from kontext_fast.pipeline.edit import EditRequest, edit
from tests.pipelines import picture, small_pipeline

INSTRUCTION = "make the background red"
PRESETS_SHOWN = ("baseline", "faithful", "turbo")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small_pipeline()


@pytest.fixture(scope="module")
def shown(pipe: Any) -> Showcase:
    return kontext_fast.showcase(pipe, PRESETS_SHOWN, picture(), INSTRUCTION, steps=4, seed=3)


def test_each_preset_makes_the_picture_that_edit_makes(pipe: Any, shown: Showcase) -> None:
    assert [shot.preset for shot in shown.shots] == list(PRESETS_SHOWN)
    for shot in shown.shots:
        with accelerate(pipe, shot.preset, quiet=True):
            expected = edit(pipe, picture(), INSTRUCTION, steps=4, seed=3).image
        assert shot.result is not None
        assert shot.result.image.tobytes() == expected.tobytes(), shot.preset
    assert len({shot.result.image.tobytes() for shot in shown.shots if shot.result}) > 1


def test_pipeline_is_as_before(pipe: Any) -> None:
    before = edit(pipe, picture(), INSTRUCTION, steps=1, seed=1).image.tobytes()
    kontext_fast.showcase(pipe, ["turbo"], picture(), INSTRUCTION, steps=1)
    assert current(pipe) is None
    assert edit(pipe, picture(), INSTRUCTION, steps=1, seed=1).image.tobytes() == before


def test_table_has_seconds_factors_and_steps(shown: Showcase) -> None:
    baseline, faithful, turbo = shown.shots
    assert baseline.seconds is not None
    assert faithful.seconds is not None
    assert shown.factor(faithful) == baseline.seconds / faithful.seconds
    lines = repr(shown).splitlines()
    assert lines[1].split()[:4] == ["baseline", f"{baseline.seconds:.2f}", "s", "1.00x"]
    assert lines[2].endswith("4 steps")
    assert "kontext bench measures" in lines[-1]
    # The kernels of fp8 are emulated on a CPU.
    assert (turbo.seconds, shown.factor(turbo), turbo.steps) == (None, None, "3 of 4 steps")
    assert lines[3].startswith("turbo     emulated: no speed")


def test_strip_holds_every_picture(shown: Showcase, tmp_path: Path) -> None:
    shown.save(tmp_path / "strip.png")
    with Image.open(tmp_path / "strip.png") as file:
        strip = np.asarray(file.convert("RGB"), np.int16)
    pictures = [picture(), *(shot.result.image for shot in shown.shots if shot.result)]
    assert strip.shape[1] == 16 + len(pictures) * (256 + 16)
    for column, image in enumerate(pictures):
        left = 16 + column * (256 + 16)
        tile = np.asarray(image.resize((256, 256), Image.Resampling.NEAREST), np.int16)
        tops = [top for top in range(80) if np.array_equal(strip[top : top + 256, left : left + 256], tile)]
        assert len(tops) == 1, column
        below = strip[tops[0] + 256 :, left : left + 256]
        assert (below < 128).any(), "a name stands under each picture"


def test_notebook_shows_pictures_and_seconds(shown: Showcase) -> None:
    page = shown._repr_html_()
    assert page.count("<img ") == 4
    assert all(shot.outcome in page for shot in shown.shots)
    assert "&lt;b&gt;" in Showcase(EditRequest("<b>"), (), "the CPU")._repr_html_()


def test_refused_preset_is_shown_with_its_reason(pipe: Any) -> None:
    def fails(error: Exception) -> Any:
        raise error

    plan = resolve_on(pipe, "baseline")
    plans: list[tuple[str, Plan | str]] = [("baseline", plan), ("huge", "It needs 99 GiB.")]
    shown = show_plans(pipe, plans, EditRequest(INSTRUCTION, picture(), steps=1))
    assert "refused" in repr(shown)
    assert "huge: It needs 99 GiB." in repr(shown)
    assert shown.strip().width == 16 + 3 * (256 + 16)
    for error in (Refused("Not here."), OutOfMemory("Too large.")):
        failing = PRESETS["channels_last"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(failing.optimizations[0]), "apply", lambda *_, error=error: fails(error))
            (shot,) = kontext_fast.showcase(pipe, ["channels_last"], picture(), INSTRUCTION, steps=1).shots
        assert (shot.result, shot.reason) == (None, str(error))


def test_progress_counts_the_steps_of_both_calls(pipe: Any) -> None:
    seen: list[tuple[str, int, int]] = []
    report = partial(lambda *values: seen.append(values))
    kontext_fast.showcase(pipe, "baseline", picture(), INSTRUCTION, steps=2, on_progress=report)
    assert seen == [("baseline", done, 4) for done in range(5)]


def test_defaults_compile_nothing() -> None:
    names = default_presets()
    assert names[0] == "baseline"
    assert {"faithful", "balanced", "fast", "turbo"} < set(names)
    assert "classic" not in names


def test_what_cannot_be_compared_is_refused_before_any_edit(pipe: Any) -> None:
    for presets, words in ((["fastest"], "no preset 'fastest'"), (["turbo", "turbo"], "named twice")):
        with pytest.raises(InvalidInput, match=words):
            kontext_fast.showcase(pipe, presets, picture(), INSTRUCTION)
    with accelerate(pipe, "faithful", quiet=True), pytest.raises(InvalidInput, match=r"revert\(\)"):
        kontext_fast.showcase(pipe, ["turbo"], picture(), INSTRUCTION)
    with pytest.raises(InvalidInput, match="instruction is missing"):
        kontext_fast.showcase(pipe, ["turbo"], picture())


def test_own_list_of_optimizations_is_named_by_its_parts(pipe: Any) -> None:
    shown = kontext_fast.showcase(pipe, [[Engine(), Offload()]], picture(), INSTRUCTION, steps=1)
    assert [shot.preset for shot in shown.shots] == ["engine+offload"]
    assert isinstance(shown.shots[0], Shot)
    with pytest.raises(InvalidInput, match="cannot be written"):
        shown.save(Path("nowhere") / "strip.png")
