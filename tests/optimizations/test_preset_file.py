"""Presets as files: what is written is read back, and mistakes are named with their line."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext_fast.engine.solver import adams_bashforth
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.fitted_for import FittedFor
from kontext_fast.optimizations.preset_file import Provenance, read_provenance, write_preset
from kontext_fast.optimizations.presets import find_preset
from kontext_fast.optimizations.techniques.engine import Engine
from kontext_fast.optimizations.techniques.solver import FittedSolver
from kontext_fast.optimizations.weight_identity import WeightIdentity

RULE = adams_bashforth([1.0, 0.8, 1 / 3, 1e-5, 0.0], 2)
FITTED_FOR = FittedFor(
    checkpoint="mine", weights=WeightIdentity(vectors="a", matrices="b"), target="converged", steps=28,
    guidance=(2.5, 2.5),
)  # fmt: skip
PROVENANCE = Provenance(
    precision="fp8", fitted_items=8, chosen_items=2, held_out_items=8, grid_steps=112, reference_steps=224,
    scores={"distances": {"plain steps": {"mean": 1e-7}}}, baseline={},
)  # fmt: skip


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    optimizations = (Engine(precision="fp8", full_precision=(-1, -2)), FittedSolver(fitted=RULE, fitted_for=FITTED_FOR))
    write_preset(file, name="mine", summary="ours", optimizations=optimizations, provenance=PROVENANCE)
    preset = find_preset(str(file))
    assert (preset.name, preset.summary, preset.optimizations) == ("mine", "ours", optimizations)
    assert read_provenance(file) == PROVENANCE


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('name = "mine"\noptimizations = 3\n', "line 2"),
        ('name = "turbo"\noptimizations = []\n', "line 1: turbo is a built-in preset"),
        ('name = "mine"\n\n[[optimizations]]\nname = "engin"\n', "line 4.*engin"),
        ('name = "mine"\n\n[[optimizations]]\nname = "engine"\nprecision = "fp9"\n', "line 5.*precision"),
        ('name = "mine"\n\n[[optimizations]]\nprecision = "fp8"\n', "line 3: this optimization has no name"),
        ("name = \n", "not valid TOML"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(InvalidInput, match=complaint) as caught:
        find_preset(str(file))
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize(
    ("width", "height", "caution"),
    [(512, 512, ""), (520, 512, ""), (1024, 512, "fitted at 512x512 and runs at 1024x512"), (None, 256, "")],
)
def test_size_of_a_call_is_compared_as_the_pipeline_rounds_it(width: int | None, height: int, caution: str) -> None:
    fitted = FITTED_FOR.model_copy(update={"mode": "text-to-image", "sizes": ("512x512",)})
    said = " ".join(fitted.cautions_about_call({"width": width, "height": height}))
    assert caution in said
    assert bool(said) == bool(caution)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="check the path"):
        find_preset(str(tmp_path / "none.toml"))
