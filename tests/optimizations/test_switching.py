"""Presets that share weights, exchanged between two calls of one pipeline."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import accelerate, current
from kontext_fast.optimizations.presets import find_preset, resolve
from kontext_fast.optimizations.switching import SwitchablePlans, sharing_groups
from kontext_fast.optimizations.techniques.fused_vae import ChannelsLast
from kontext_fast.optimizations.techniques.prompt_cache import PromptCache
from kontext_fast.pipeline.device import Machine
from tests.pipelines import render, small_pipeline

STILL_RUNS = r"^A call of this pipeline still runs; select fast when it has ended\.$"


def test_presets_of_one_precision_share_a_worker() -> None:
    presets = [find_preset(name) for name in ("fast", "faithful", "balanced", "baseline", "turbo")]
    groups = sharing_groups(presets, architecture_only=False)
    assert [[preset.name for preset in group] for group in groups] == [
        ["fast", "balanced", "turbo"],
        ["faithful"],
        ["baseline"],
    ]


@pytest.mark.parametrize(
    ("changes", "architecture_only", "groups"),
    [
        ({"name": "other"}, False, 1),
        ({"on_cuda": (PromptCache(),)}, False, 2),
        ({"optional": (PromptCache(),)}, False, 2),
        ({"on_random": (ChannelsLast(),)}, False, 1),
        ({"on_random": (ChannelsLast(),)}, True, 2),
        ({}, True, 1),
    ],
)
def test_presets_with_other_parts_do_not_share(changes: dict[str, Any], architecture_only: bool, groups: int) -> None:
    presets = [find_preset("fuse_qkv"), replace(find_preset("fuse_qkv"), **changes)]
    assert len(sharing_groups(presets, architecture_only=architecture_only)) == groups


def test_selected_preset_equals_the_same_one_alone() -> None:
    machine = Machine.detect("cpu")
    names = ("balanced", "fast")
    alone = {}
    for name in names:
        pipe = small_pipeline()
        with accelerate(pipe, name, quiet=True):
            alone[name] = render(pipe, steps=7)
    assert not np.array_equal(alone["balanced"], alone["fast"])
    pipe = small_pipeline()
    before = render(pipe, steps=7)
    plans = SwitchablePlans([resolve(name, machine) for name in names], pipe)
    acceleration = current(pipe)
    assert acceleration is not None
    assert acceleration.plan.preset == "balanced"
    for name in ("balanced", "fast", "fast", "balanced"):
        plans.select(name)
        assert np.array_equal(render(pipe, steps=7), alone[name])
    plans.select("fast")
    plans.revert()
    assert current(pipe) is None
    assert np.array_equal(render(pipe, steps=7), before)


def test_presets_of_other_weights_are_refused() -> None:
    machine = Machine.detect("cpu")
    with pytest.raises(ValueError, match=r"^these plans do not share weights$"):
        SwitchablePlans([resolve(name, machine) for name in ("balanced", "faithful")], small_pipeline())


def test_plans_run_on_the_device_that_was_asked_for() -> None:
    plan = resolve("balanced", Machine.detect("cpu"))
    with pytest.raises(InvalidInput, match=r"^The pipeline is on cpu; move it with pipe\.to\('meta'\)"):
        SwitchablePlans([plan], small_pipeline(), device="meta")


def test_select_of_another_preset_during_a_call_is_refused() -> None:
    machine = Machine.detect("cpu")
    pipe = small_pipeline()
    plans = SwitchablePlans([resolve(name, machine) for name in ("balanced", "fast")], pipe)
    plans.select("balanced")
    alone = render(pipe, steps=7)

    def select_in_another_thread(_step: int) -> None:
        plans.select("balanced")  # changes nothing, so it may run
        with ThreadPoolExecutor(1) as thread, pytest.raises(InvalidInput, match=STILL_RUNS):
            thread.submit(plans.select, "fast").result()

    assert np.array_equal(render(pipe, steps=7, on_step=select_in_another_thread), alone)
    plans.select("fast")
    assert not np.array_equal(render(pipe, steps=7), alone)
    plans.revert()
