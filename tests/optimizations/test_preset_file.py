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
from kontext_fast.optimizations.techniques.prompt_cache import PromptCache
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


WRITTEN = """\
name = "mine"
summary = "our \\"own\\""

[[optimizations]]
name = "solver"

[optimizations.fitted]
noise_levels = [1.0]
coefficients = [[1.0, -1.0]]

[optimizations.fitted_for]
checkpoint = "mine"
loras = []
target = "converged"
steps = 28
guidance = [2.5, 2.5]
mode = "edit"
sizes = []

[optimizations.fitted_for.weights]
vectors = "a"
matrices = "b"

[[on_cuda]]
name = "prompt_cache"
entries = 2

[provenance]
precision = "fp8"
fitted_items = 8
chosen_items = 2
held_out_items = 8
grid_steps = 112
reference_steps = 224

[provenance.scores]

[provenance.scores.distances]

[provenance.scores.distances."plain steps"]
mean = 1e-07

[provenance.baseline]
"""


def test_tables_are_written_for_people_and_for_every_reader(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    solver = FittedSolver(fitted=adams_bashforth([1.0, 0.0], 1), fitted_for=FITTED_FOR)
    on_cuda = (PromptCache(entries=2),)
    write_preset(file, name="mine", summary='our "own"', optimizations=[solver], on_cuda=on_cuda, provenance=PROVENANCE)
    assert file.read_text() == WRITTEN
    assert find_preset(str(file)).on_cuda == on_cuda
    assert list(tmp_path.iterdir()) == [file]
    write_preset(file, name="b-1", summary="", optimizations=[])
    assert file.read_text() == 'name = "b-1"\nsummary = ""\n'


EMPTY = 'name = "mine"\noptimizations = []\n\n'
ENTRY = 'name = "mine"\n\n[[optimizations]]\n'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('name = "mine"\noptimizations = 3\n', ", line 2: optimizations: 3 is not a list."),
        ('name = "turbo"\noptimizations = []\n', ", line 1: turbo is a built-in preset; choose another name."),
        (f'{ENTRY}name = "engin"\n', ", line 4: There is no optimization 'engin'; did you mean engine?"),
        (
            f'{ENTRY}name = "engine"\nprecision = "fp9"\n',
            ", line 5: Bad parameters for engine: precision: 'fp9' is not one of bf16, fp8 or int8.",
        ),
        (f'{ENTRY}precision = "fp8"\n', ", line 3: this optimization has no name; see kontext presets."),
        (
            f'{EMPTY}[[on_cuda]]\nname = "prompt_cache"\nentries = 0\n',
            ", line 6: Bad parameters for prompt_cache: entries: 0 is below 1.",
        ),
        (
            f'{EMPTY}[[on_cuda]]\nname = "prompt_cache"\n\n[[on_cuda]]\nname = "first_block_cache"\n',
            ", line 7: first_block_cache changes images, so other devices would make others; move it to "
            "[[optimizations]].",
        ),
        (f"{EMPTY}[provenance]\nprecision = 3\n", ", line 5: provenance.precision: 3 is not a text."),
        ("name = \n", " is not valid TOML (Invalid value (at line 1, column 8)); correct it."),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        find_preset(str(file))
    assert str(caught.value) == f"{file}{complaint}"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        find_preset(str(tmp_path / "none.toml"))
    assert str(caught.value) == (
        f"The preset file {tmp_path / 'none.toml'} cannot be read (No such file or directory); check the path."
    )
