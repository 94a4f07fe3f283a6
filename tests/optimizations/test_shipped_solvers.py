"""The fitted presets that come with the package: they run on `tiny`, on `random` for time alone, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations import presets
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.preset_file import read_preset, read_provenance
from kontext_fast.optimizations.presets import PRESETS, find_preset
from kontext_fast.optimizations.weight_identity import identity_of
from tests.optimizations.test_plan import machine
from tests.pipelines import _tiny, small_pipeline

FOLDER = Path(presets.__file__).with_name("fitted")
SHIPPED = {"tuned-10": 10, "tuned-7": 7}


def solver_of(name: str) -> Any:
    return find_preset(name).optimizations[-1]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_preset_is_its_file_with_its_proof(name: str) -> None:
    assert list(PRESETS).index(name) > list(PRESETS).index("turbo")
    _, _, optimizations, on_cuda = read_preset(FOLDER / f"{name}.toml", ())
    assert PRESETS[name].optimizations == optimizations
    assert PRESETS[name].on_cuda == on_cuda == PRESETS["faithful"].on_cuda
    assert solver_of(name).fitted.evaluations == SHIPPED[name]
    provenance = read_provenance(FOLDER / f"{name}.toml")
    assert provenance is not None
    assert (provenance.dtype, provenance.scores["verdict"]) == ("float32", "passes")
    assert provenance.scores["ratio_of_fitted_to"]["plain steps"]["interval"][1] < 0.5


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_preset_refuses_weights_other_than_tiny(name: str) -> None:
    fitted_for = solver_of(name).fitted_for
    assert fitted_for.weights == identity_of(_tiny().transformer)
    with pytest.raises(InvalidInput, match="fitted to tiny, and these are other weights"):
        accelerate(small_pipeline(), name, quiet=True)


@pytest.mark.parametrize("name", SHIPPED)
def test_random_weights_get_a_shipped_preset_for_its_time_alone(name: str) -> None:
    plan = presets.resolve(name, machine(), architecture_only=True)
    assert any("fitted to other weights than these random ones" in label for label in plan.labels)
    assert getattr(plan.optimizations[0], "fitted_for", None) is None
    assert all(getattr(optimization, "fitted_for", None) is None for optimization in plan.optimizations)


def test_a_file_may_not_have_the_name_of_a_shipped_preset(tmp_path: Path) -> None:
    copy = tmp_path / "mine.toml"
    copy.write_bytes((FOLDER / "tuned-10.toml").read_bytes())
    with pytest.raises(InvalidInput, match="tuned-10 is a built-in preset"):
        find_preset(str(copy))
