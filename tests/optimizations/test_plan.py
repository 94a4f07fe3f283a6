"""Resolving presets: order, refusals, conflicts, labels and the content hash."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.presets import PRESETS, Preset, resolve
from kontext_fast.optimizations.registry import build, discover
from kontext_fast.optimizations.techniques.compile import Compile
from kontext_fast.optimizations.techniques.first_block_cache import FirstBlockCache
from kontext_fast.optimizations.techniques.fuse_qkv import FuseQKV
from kontext_fast.optimizations.techniques.fused_vae import ChannelsLast
from kontext_fast.pipeline.device import Machine


def machine(**facts: Any) -> Machine:
    able: dict[str, Any] = {"device": "cpu", "memory_bytes": 2**34, "cxx": "g++", "cc": "gcc", "triton": True}
    return Machine(**{**able, "torch": "2.13.0", "platform": "linux-x86_64", **facts})


def test_optimization_has_a_preset_of_its_name() -> None:
    on_the_engine = {"faithful", "precise", "balanced", "fast", "turbo", "low_memory"}
    assert set(PRESETS) == {"baseline", "classic", "tuned-10", "tuned-7", *on_the_engine, *discover()}
    assert PRESETS["baseline"].optimizations == ()


def test_plan_is_sorted_by_phase() -> None:
    plan = resolve([Compile(), FirstBlockCache(), ChannelsLast(), FuseQKV()], machine())
    assert [one.name for one in plan.optimizations] == ["fuse_qkv", "channels_last", "first_block_cache", "compile"]
    assert plan.content_hash == resolve("classic", machine()).content_hash


def test_unknown_preset_names_the_closest_ones() -> None:
    with pytest.raises(InvalidInput, match="did you mean classic"):
        resolve("clasic", machine())
    with pytest.raises(InvalidInput, match="choose one of baseline"):
        resolve("zzz", machine())


def test_conflict_by_parameter_in_either_order() -> None:
    whole: list[Optimization] = [Compile(mode="whole"), FirstBlockCache()]
    for chosen in (whole, whole[::-1]):
        with pytest.raises(InvalidInput, match=r"compile \(mode=whole\) and first_block_cache.*mode=regional"):
            resolve(chosen, machine())
    assert len(resolve([Compile(mode="regional"), FirstBlockCache()], machine()).optimizations) == 2


def test_all_reasons_are_reported_at_once() -> None:
    chosen = [Compile(mode="whole"), FirstBlockCache(), FuseQKV(), FuseQKV()]
    with pytest.raises(InvalidInput) as error:
        resolve(chosen, machine(cxx=None))
    for reason in ("exclude each other", "fuse_qkv is in the list 2 times", "C++ compiler"):
        assert reason in str(error.value)


@pytest.mark.parametrize(
    ("facts", "remedy", "mended"),
    [
        ({"cxx": None}, r"install g\+\+", {"cxx": "g++"}),
        ({"device": "cuda", "capability": (8, 0), "triton": False}, "pip install triton", {"triton": True}),
        ({"device": "cuda", "capability": (8, 0), "cc": None}, "install gcc", {"cc": "gcc"}),
        ({"device": "cuda", "capability": (6, 1)}, "this GPU has 6.1; use a preset without it", None),
        ({"device": "mps"}, "not supported on mps; use a preset without it", None),
    ],
)
def test_compile_is_refused_until_the_remedy_is_followed(
    facts: dict[str, Any], remedy: str, mended: dict[str, Any] | None
) -> None:
    with pytest.raises(Refused, match=remedy):
        resolve("compile", machine(**facts))
    if mended is None:
        assert resolve("first_block_cache", machine(**facts)).optimizations
    else:
        assert resolve("compile", machine(**{**facts, **mended})).optimizations == (Compile(),)


def test_compile_on_a_gpu_needs_no_cxx_compiler() -> None:
    assert Compile().refusal(machine(device="cuda", capability=(9, 0), cxx=None)) is None


def test_random_weights_get_the_declared_schedule() -> None:
    plan = resolve("first_block_cache", machine(), architecture_only=True)
    assert plan.optimizations == (FirstBlockCache(schedule="every_second"),)
    assert len(plan.labels) == 1
    assert "fixed schedule" in plan.labels[0]
    assert "15 of 28 steps" in plan.labels[0]
    assert "hit rate on random weights means nothing" in plan.labels[0]
    assert resolve("first_block_cache", machine()).labels == ()
    assert resolve("baseline", machine(), architecture_only=True).labels == ()


@pytest.mark.parametrize("asked", [[FirstBlockCache()], Preset("mine", "a threshold", (FirstBlockCache(),))])
def test_threshold_on_random_weights_is_labelled(asked: Any) -> None:
    plan = resolve(asked, machine(), architecture_only=True)
    assert plan.optimizations == (FirstBlockCache(),)
    assert "hit rate meaningless" in plan.labels[0]


def test_content_hash_follows_parameters_not_the_name() -> None:
    renamed = Preset("other", "the same", PRESETS["first_block_cache"].optimizations)
    base = resolve("first_block_cache", machine()).content_hash
    assert resolve(renamed, machine()).content_hash == base
    assert resolve([FirstBlockCache(threshold=0.1)], machine()).content_hash != base
    assert resolve("baseline", machine()).content_hash != base


def test_content_hash_is_stable_and_needs_no_torch() -> None:
    code = """
import json, sys
from kontext_fast.pipeline.device import Machine
from kontext_fast.optimizations.presets import resolve
here = Machine(device="cpu", memory_bytes=1, cxx="g++", cc=None, triton=False, torch="2.13.0", platform="x")
print(json.dumps([resolve("classic", here).content_hash, "torch" in sys.modules, "diffusers" in sys.modules]))
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == [resolve("classic", machine()).content_hash, False, False]


def test_record_of_a_plan_rebuilds_the_plan() -> None:
    for preset in PRESETS.values():
        for architecture_only in (False, True):
            plan = resolve(preset, machine(), architecture_only=architecture_only)
            again = [build(applied.name, applied.parameters) for applied in plan.applied]
            assert [applied.revision for applied in plan.applied] == [part.revision for part in plan.optimizations]
            assert resolve(again, machine()).content_hash == plan.content_hash


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": float("inf")}, "threshold"),
        ({"warmup_steps": 0}, "warmup_steps"),
        ({"max_consecutive_skips": 0}, "max_consecutive_skips"),
        ({"schedule": [1, 2]}, "step 0"),
        ({"schedule": "sometimes"}, "schedule"),
        ({"schedule": [0], "threshold": 0.1}, "leave out threshold"),
        ({"speed": 9}, "speed"),
    ],
)
def test_bad_parameters_are_invalid_input_in_one_line(parameters: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint) as error:
        build("first_block_cache", parameters)
    assert "\n" not in str(error.value)


def test_other_objects_are_invalid_input() -> None:
    with pytest.raises(InvalidInput, match="list of optimizations"):
        resolve(["compile"], machine())  # type: ignore[list-item]
