"""The preset where none is named: what it says of faster ones, and where it is refused before anything is loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from kontext_fast.cli.session import Setup, open_session
from kontext_fast.errors import Refused
from kontext_fast.optimizations import DEFAULT_PRESET, acceleration
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.presets import (
    H100_DATES,
    H100_SECONDS,
    PEAK_GIB,
    PRESETS,
    faster_presets,
    preset_that_fits,
    resolve,
    resolve_for,
)
from kontext_fast.pipeline import load
from kontext_fast.pipeline.device import Machine
from kontext_fast.records.store import ResultStore
from tests.pipelines import small_pipeline

H100 = Path(__file__).parents[2] / "results" / "h100"
HUB_ID = "black-forest-labs/FLUX.1-Kontext-dev"
SMALL_CARD = "needs 42 GiB of GPU memory for FLUX.1-Kontext-dev and this card has 24: use --preset low_memory."


def gpu(memory_gib: float, capability: tuple[int, int] | None = (8, 9), **facts: Any) -> Machine:
    known: dict[str, Any] = {"device": "cuda", "gpu": "card", "cxx": "g++", "cc": "gcc", "triton": True}
    return Machine(
        **{**known, **facts},
        capability=capability,
        memory_bytes=int(memory_gib * 2**30),
        torch="2.13.0",
        platform="linux-x86_64",
    )


def test_default_preset_is_not_lossy() -> None:
    assert DEFAULT_PRESET in PRESETS
    assert {optimization.effect.value for optimization in PRESETS[DEFAULT_PRESET].optimizations} <= {"exact", "numeric"}


@pytest.mark.parametrize("checkpoint", [HUB_ID, "random"])
def test_small_card_is_refused_with_the_preset_that_fits(checkpoint: str) -> None:
    with pytest.raises(Refused, match=SMALL_CARD):
        resolve_for(checkpoint, DEFAULT_PRESET, gpu(24))
    assert resolve_for(checkpoint, "low_memory", gpu(24)).preset == "low_memory"
    assert resolve_for(checkpoint, DEFAULT_PRESET, gpu(44)).preset == DEFAULT_PRESET


def test_small_checkpoint_fits_a_small_card(tmp_path: Path) -> None:
    assert resolve_for("tiny", DEFAULT_PRESET, gpu(4)).preset == DEFAULT_PRESET
    assert resolve_for("org/small", DEFAULT_PRESET, gpu(4)).preset == DEFAULT_PRESET
    assert resolve_for(str(tmp_path), DEFAULT_PRESET, gpu(4)).preset == DEFAULT_PRESET


def test_large_folder_counts_as_full_size(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    with (tmp_path / "transformer" / "model.safetensors").open("wb") as file:
        file.truncate(30 * 2**30)
    with pytest.raises(Refused, match=SMALL_CARD):
        resolve_for(str(tmp_path), DEFAULT_PRESET, gpu(24))


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (gpu(80), "faithful"),
        (gpu(39.4, (8, 0)), "baseline"),
        (gpu(24), "low_memory"),
        (gpu(24, (8, 6)), None),
        (gpu(15.9), "low_memory(modulations=host)"),
        (gpu(12), None),
    ],
)
def test_fallback_is_a_preset_that_runs_and_fits(machine: Machine, expected: str | None) -> None:
    assert preset_that_fits(machine) == expected


def test_remedy_for_a_card_of_16_gb_is_a_plan_that_fits() -> None:
    with pytest.raises(Refused, match=r"use --preset 'low_memory\(modulations=host\)'\.$"):
        resolve_for("random", "low_memory", gpu(15.9))
    assert resolve_for("random", "low_memory(modulations=host)", gpu(15.9)).in_host_memory


@pytest.mark.parametrize("machine", [gpu(12), gpu(24, (8, 6))])
def test_card_too_small_for_all_presets_is_refused(machine: Machine) -> None:
    with pytest.raises(Refused, match="no preset fits, so use a larger card or the checkpoint tiny"):
        resolve_for("random", DEFAULT_PRESET, machine)


@pytest.mark.parametrize("machine", [gpu(24, device="mps", capability=None), gpu(48, (7, 5))])
def test_device_without_the_engine_is_referred_to_baseline(machine: Machine) -> None:
    with pytest.raises(Refused, match=r"^[^;]*; use the preset baseline\.$"):
        resolve(DEFAULT_PRESET, machine)
    assert resolve("baseline", machine).preset == "baseline"


def test_cpu_accepts_the_default_preset() -> None:
    machine = gpu(8, device="cpu", gpu=None, capability=None, cxx=None, cc=None, triton=False)
    assert resolve_for("random", DEFAULT_PRESET, machine).preset == DEFAULT_PRESET


def test_session_is_refused_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "detect", lambda _device: gpu(24))
    monkeypatch.setattr(load, "load", lambda *_, **__: pytest.fail("the checkpoint was loaded"))
    setup = Setup(checkpoint=HUB_ID, preset=DEFAULT_PRESET, lora=None, device="cpu")
    with pytest.raises(Refused, match=SMALL_CARD), open_session(setup):
        pass


def test_accelerate_refuses_before_changing_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small_pipeline()
    monkeypatch.setattr(Machine, "detect", lambda _device: gpu(24))
    monkeypatch.setattr(acceleration, "FULL_SIZE_BYTES", 1000)
    monkeypatch.setattr(acceleration, "apply_plan", lambda *_: pytest.fail("the pipeline was changed"))
    with pytest.raises(Refused, match=SMALL_CARD):
        accelerate(pipe, quiet=True)


def test_default_preset_prints_the_faster_ones(capsys: pytest.CaptureFixture[str]) -> None:
    accelerate(small_pipeline()).revert()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == faster_presets()
    for word in ("lossy", "balanced 1.4x", "fast 3.5x", "kontext verify --preset balanced,fast --dataset"):
        assert word in last
    accelerate(small_pipeline(), "baseline").revert()
    assert faster_presets() not in capsys.readouterr().out


FOLDERS = (
    "2026-11-25-card",
    "2026-11-26-card-precise",
    "2026-11-26-presets",
    "2026-11-27-presets",
    "2026-11-27-presets-2",
)


def _published(preset: str) -> list[tuple[float, int]]:
    """Seconds and peak of the process in bytes of every measured edit at 1024x1024 in 28 steps."""
    return [
        (sample.wall_s, sample.memory.device_process_peak_bytes or 0)
        for folder in FOLDERS
        for record in ResultStore.find(H100 / folder).load().records
        if record.preset == preset
        for measurement in record.measurements
        for sample in measurement.samples
        if not sample.warmup
    ]


def test_memory_table_equals_the_records() -> None:
    checks = json.loads((H100 / "2026-11-25-checks" / "low_memory.json").read_text())
    assert PEAK_GIB["low_memory"] == checks["cap_gib"]
    for preset in PEAK_GIB.keys() - {"low_memory"}:
        assert PEAK_GIB[preset] == math.ceil(max(peak for _, peak in _published(preset)) / 2**30)


def test_seconds_on_an_h100_are_those_of_the_readme() -> None:
    # Which a test of its own holds to the records.
    readme = (H100.parents[1] / "README.md").read_text()
    assert f"instead of {H100_SECONDS['baseline']:g} s on one H100" in readme
    for preset in H100_SECONDS.keys() - {"baseline"}:
        assert f"| `{preset}` | {H100_SECONDS[preset]:g} s |" in readme
    assert f"on one NVIDIA H100 80GB HBM3, {H100_DATES}," in readme
