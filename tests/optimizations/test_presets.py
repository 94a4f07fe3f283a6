"""Looking up presets by name, their ablations, and their optional parts."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from kontext_fast.cli import options
from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.optimizations import base
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.presets import (
    FP8_WEIGHTS_GIB,
    H100_SECONDS,
    HOST_MODULATIONS_GIB,
    PEAK_GIB,
    PRESETS,
    Plan,
    Preset,
    declare_preset,
    faster_presets,
    find_preset,
    memory_refusal,
    needed_gib,
    require_memory,
    resolve,
    resolve_for,
    with_required,
)
from kontext_fast.optimizations.techniques.engine import Engine
from kontext_fast.optimizations.techniques.first_block_cache import FirstBlockCache
from kontext_fast.optimizations.techniques.fuse_qkv import FuseQKV
from kontext_fast.optimizations.techniques.fused_vae import ChannelsLast
from kontext_fast.optimizations.techniques.offload import Offload
from kontext_fast.optimizations.techniques.prompt_cache import PromptCache
from kontext_fast.optimizations.techniques.step_reuse import StepReuse
from kontext_fast.pipeline.device import Machine

CPU = Machine(device="cpu", memory_bytes=1, cxx="g++", cc="gcc", triton=False, torch="2.13.0", platform="linux-x86_64")
GPU = replace(CPU, device="cuda", gpu="NVIDIA H200", capability=(9, 0))


class _GpuOnly(Optimization):
    name: ClassVar[str] = "gpu_only"
    summary: ClassVar[str] = "needs a GPU and a package"
    effect: ClassVar[Effect] = Effect.EXACT
    phase: ClassVar[Phase] = Phase.KERNELS
    extra: ClassVar[tuple[str, str] | None] = ("json", "made_up")
    sizes: tuple[int, ...] = (1, 2)

    def hardware_refusal(self, machine: Machine) -> str | None:
        return None if machine.device == "cuda" else f"{self.name} needs a GPU; run it on one"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        return {}


OPTIONAL = Preset("mine", "one part is optional", (ChannelsLast(),), optional=(_GpuOnly(),))


def test_baseline_has_no_optimization_and_names_its_source() -> None:
    assert PRESETS["baseline"].optimizations == ()
    assert PRESETS["baseline"].source


def test_built_in_presets_are_built_alike_when_looked_up() -> None:
    fresh = type(PRESETS)()
    assert {name: fresh[name] for name in ("baseline", "turbo", "tuned-10", "channels_last")} == {
        name: find_preset(name) for name in ("baseline", "turbo", "tuned-10", "channels_last")
    }
    assert fresh["tuned-10"].optimizations


class _NeedsTwo(_GpuOnly):
    requires: ClassVar[frozenset[str]] = frozenset({"fuse_qkv", "engine"})


def test_what_an_optimization_requires_comes_before_it() -> None:
    assert with_required(StepReuse()) == (Engine(), StepReuse())
    assert with_required(ChannelsLast()) == (ChannelsLast(),)
    assert _GpuOnly().parameters() == {"sizes": [1, 2]}
    with pytest.raises(InvalidInput, match="gpu_only needs engine and fuse_qkv, add it to the list"):
        resolve([_NeedsTwo()], GPU)


def test_declared_preset_keeps_what_it_was_declared_with() -> None:
    preset = declare_preset("ours", "an own one", (ChannelsLast(),), optional=(_GpuOnly(),), source="a paper")
    assert preset == Preset("ours", "an own one", (ChannelsLast(),), optional=(_GpuOnly(),), source="a paper")


def test_memory_of_own_presets_is_that_of_the_measured_ones() -> None:
    engine, offload = Engine(precision="fp8"), Offload()
    assert needed_gib("ours", (engine, offload)) == PEAK_GIB["low_memory"]
    assert needed_gib("ours", (Engine(precision="fp8", modulations="host"), offload)) == HOST_MODULATIONS_GIB
    assert needed_gib("ours", (engine,)) == PEAK_GIB["balanced"]
    assert needed_gib("ours", (Engine(precision="bf16"), offload)) == PEAK_GIB["faithful"]
    for both in (Engine(precision="fp8", full_precision=(-1,)), Engine(precision="fp8", originals="device")):
        assert needed_gib("ours", (both,)) == PEAK_GIB["faithful"] + FP8_WEIGHTS_GIB
    assert needed_gib("ours", (ChannelsLast(),)) is None


def test_ablations_keep_one_or_all_but_one() -> None:
    whole = find_preset("classic")
    without = find_preset("classic-without-compile")
    assert without.optimizations == tuple(part for part in whole.optimizations if part.name != "compile")
    assert without.on_random == tuple(part for part in whole.on_random or () if part.name != "compile")
    assert [part.name for part in find_preset("classic-only-compile").optimizations] == ["compile"]


CACHED = (FirstBlockCache(),)
WHOLE = Preset(
    "whole", "all kinds", (FuseQKV(), *CACHED), on_random=(FuseQKV(), FirstBlockCache(schedule="every_second")),
    optional=(_GpuOnly(),), on_cuda=(PromptCache(),), source="a paper",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "optimizations", "on_random", "optional", "on_cuda"),
    [
        ("without fuse_qkv", CACHED, WHOLE.on_random[1:], WHOLE.optional, WHOLE.on_cuda),
        ("without prompt_cache", WHOLE.optimizations, WHOLE.on_random, WHOLE.optional, ()),
        ("without gpu_only", WHOLE.optimizations, WHOLE.on_random, (), WHOLE.on_cuda),
        ("only fuse_qkv", (FuseQKV(),), (FuseQKV(),), (), ()),
        ("only gpu_only", (), (), WHOLE.optional, ()),
        # What is added on CUDA is asked for by its name, and so runs anywhere.
        ("only prompt_cache", WHOLE.on_cuda, WHOLE.on_cuda, (), ()),
    ],
)
def test_ablation_keeps_all_else_of_its_preset(
    name: str, optimizations: Any, on_random: Any, optional: Any, on_cuda: Any
) -> None:
    full = f"whole-{name.replace(' ', '-')}"
    expected = Preset(full, f"all kinds: {name}", optimizations, on_random, optional, on_cuda, "a paper")
    assert find_preset(full, {"whole": WHOLE}) == expected
    plain = find_preset(full, {"whole": replace(WHOLE, on_random=None)})
    assert plain == replace(expected, on_random=None)


def test_replacement_reaches_every_part_and_keeps_the_rest() -> None:
    changed = replace(WHOLE, on_cuda=(StepReuse(computed=(0, 1)), PromptCache())).replace(entries=3, computed=2)
    assert changed == replace(
        WHOLE, name="whole(entries=3,computed=2)", on_cuda=(StepReuse(computed=2), PromptCache(entries=3))
    )
    assert find_preset("whole(entries=3)", {"whole": WHOLE}) == WHOLE.replace(entries=3)
    assert WHOLE.replace(threshold=0.2).on_random == WHOLE.on_random
    assert type(WHOLE).replace(replace(OPTIONAL, optional=(PromptCache(),)), entries=3).optional[0].entries == 3
    with pytest.raises(InvalidInput) as caught:
        WHOLE.replace(gpus=2)
    assert str(caught.value) == (
        "whole has no engine, which alone computes one edit on several GPUs; use the preset faithful, balanced or "
        "another one that has it."
    )
    with pytest.raises(InvalidInput, match="no parameter of whole 'speed'"):
        WHOLE.replace(speed=2)


@pytest.mark.parametrize(
    ("chosen", "complaint"),
    [
        ("whole-only-coffee", "The preset whole has no optimization 'coffee' to ablate."),
        (
            [StepReuse(), StepReuse()],
            "The preset step_reuse+step_reuse cannot be applied: step_reuse is in the list 2 times, keep one; "
            "step_reuse needs engine, add it to the list or use the preset step_reuse; step_reuse needs engine, add "
            "it to the list or use the preset step_reuse.",
        ),
        ([3], "Pass the name of a preset, a Preset or a list of optimizations."),
        ([_GpuOnly()], "The preset gpu_only is refused on this machine: gpu_only needs a GPU; run it on one."),
    ],
)
def test_refusals_name_the_preset_and_each_reason(chosen: Any, complaint: str) -> None:
    with pytest.raises((InvalidInput, Refused)) as caught:
        find_preset(chosen, {"whole": WHOLE}) if isinstance(chosen, str) else resolve(chosen, CPU)
    assert str(caught.value) == complaint


def test_plan_has_the_parts_of_its_device_and_weights() -> None:
    cuda = resolve(WHOLE, GPU, architecture_only=True)
    assert [part.name for part in cuda.optimizations] == ["fuse_qkv", "gpu_only", "first_block_cache", "prompt_cache"]
    assert cuda.preset == "whole"
    assert len(cuda.labels) == 2
    cpu = resolve(WHOLE, CPU)
    assert cpu.optimizations == WHOLE.optimizations
    assert cpu.labels == ("without gpu_only of its recipe: gpu_only needs a GPU; run it on one",)
    assert resolve([], CPU) == resolve("baseline", CPU)
    assert resolve([FuseQKV(), ChannelsLast()], CPU).preset == "fuse_qkv+channels_last"


def test_line_on_faster_presets_names_them_and_the_check() -> None:
    balanced, fast = (H100_SECONDS["faithful"] / H100_SECONDS[name] for name in ("balanced", "fast"))
    assert faster_presets() == (
        f"Faster than faithful, but lossy: balanced {balanced:.1f}x, fast {fast:.1f}x (H100, 1024x1024, 28 steps); "
        "check them on your weights with: kontext verify --preset balanced,fast --dataset DIR"
    )


def test_memory_refusal_names_need_card_and_what_fits() -> None:
    refusals = {gib: memory_refusal("faithful", replace(GPU, memory_bytes=gib * 2**30)) for gib in (42, 41, 24, 16, 8)}
    remedies = {
        41: "use --preset baseline",
        24: "use --preset low_memory",
        16: "use --preset 'low_memory(modulations=host)'",
        8: "no preset fits, so use a larger card or the checkpoint tiny",
    }
    assert refusals.pop(42) is None
    assert refusals == {
        gib: f"The preset faithful needs 42 GiB of GPU memory for FLUX.1-Kontext-dev and this card has {gib}: {remedy}."
        for gib, remedy in remedies.items()
    }
    assert memory_refusal("faithful", replace(CPU, memory_bytes=2**30)) is None
    assert memory_refusal("ours", replace(GPU, memory_bytes=2**30)) is None


@pytest.mark.parametrize("name", ["clasic", "classic-without-coffee", "clasic-only-compile", "-only-compile"])
def test_unknown_ablation_is_bad_input(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"There is no preset|has no optimization"):
        find_preset(name)


def test_optional_part_runs_where_the_hardware_allows_it() -> None:
    plan = resolve(OPTIONAL, GPU)
    assert [part.name for part in plan.optimizations] == ["channels_last", "gpu_only"]
    assert plan.labels == ()
    plan = resolve(OPTIONAL, CPU)
    assert [part.name for part in plan.optimizations] == ["channels_last"]
    assert plan.labels == ("without gpu_only of its recipe: gpu_only needs a GPU; run it on one",)


def test_missing_package_refuses_even_an_optional_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"gpu_only needs the package json; run `pip install kontext-fast\[made_up\]`"):
        resolve(OPTIONAL, GPU)
    assert len(resolve(OPTIONAL, CPU).optimizations) == 1


def test_required_part_refuses_the_preset_on_other_hardware() -> None:
    with pytest.raises(Refused, match="gpu_only needs a GPU"):
        resolve(Preset("mine", "no part is optional", (_GpuOnly(),)), CPU)


def test_replaced_parameter_changes_its_optimization_alone() -> None:
    turbo = PRESETS["turbo"]
    changed = turbo.replace(computed=5)
    assert changed.name == "turbo(computed=5)"
    assert [part.name for part in changed.optimizations] == [part.name for part in turbo.optimizations]
    different = [
        (before.parameters(), after.parameters())
        for before, after in zip(turbo.optimizations, changed.optimizations, strict=True)
        if before != after
    ]
    assert [(before["computed"], after["computed"]) for before, after in different] == [(4, 5)]
    assert PRESETS["turbo"] == turbo


@pytest.mark.parametrize(
    ("parameters", "words"),
    [({"compute": 5}, "did you mean computed"), ({"computed": 0}, "step_reuse.*computed")],
)
def test_impossible_replacement_is_refused(parameters: dict[str, int], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        PRESETS["turbo"].replace(**parameters)


def test_name_with_parameters_is_the_preset_with_them() -> None:
    assert find_preset("turbo(computed=5)") == PRESETS["turbo"].replace(computed=5)
    assert find_preset("turbo(computed=5, precision=bf16)") == PRESETS["turbo"].replace(computed=5, precision="bf16")
    assert find_preset("turbo(computed=(0, 1, 27))") == PRESETS["turbo"].replace(computed=(0, 1, 27))
    assert options.names(["fast,turbo(computed=5,order=0)"]) == ("fast", "turbo(computed=5,order=0)")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("trubo(computed=5)", "did you mean turbo"),
        ("turbo(compute=5)", "did you mean computed"),
        ("turbo(computed)", "not NAME=VALUE"),
        ("turbo(computed=)", "not NAME=VALUE"),
        ("turbo()", "There is no preset"),
        ("turbo(computed=often)", "computed"),
    ],
)
def test_impossible_name_with_parameters_is_refused(name: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        find_preset(name)


class _GpuOnlyToo(_GpuOnly):
    name: ClassVar[str] = "gpu_only_too"


def test_every_refusal_and_every_complaint_stands_in_one_sentence() -> None:
    with pytest.raises(Refused) as refused:
        resolve([_GpuOnly(), _GpuOnlyToo()], CPU)
    assert "gpu_only needs a GPU; run it on one; gpu_only_too needs a GPU" in str(refused.value)
    with pytest.raises(InvalidInput) as bad:
        _GpuOnly(sizes=("a", "b"), other=1)
    assert str(bad.value) == (
        "Bad parameters for gpu_only: sizes: 'a' is not a whole number; sizes: 'b' is not a whole number; other: there "
        "is no such key."
    )


def test_parameters_say_what_ran_and_what_may_be_chosen() -> None:
    assert _GpuOnly().is_what_ran({"sizes": [1, 2]})
    assert not _GpuOnly().is_what_ran({"sizes": [1]})
    assert "fp8" in Engine.choices()["precision"]
    assert "sizes" not in _GpuOnly.choices()


def test_plan_needs_the_memory_of_its_engine_under_its_own_name() -> None:
    with pytest.raises(Refused, match=f"The preset mine needs {PEAK_GIB['faithful']} GiB"):
        require_memory(Plan("mine", (Engine(precision="bf16"),)), replace(GPU, memory_bytes=2**30))


def test_random_weights_take_the_variant_for_them_before_they_are_loaded() -> None:
    random = resolve_for("random", "first_block_cache", CPU)
    assert random == resolve("first_block_cache", CPU, architecture_only=True)
    assert random != resolve_for("tiny", "first_block_cache", CPU)


def test_preset_that_is_added_is_found_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    count = len(PRESETS)
    assert count == len(list(PRESETS))
    monkeypatch.setitem(PRESETS, "mine", OPTIONAL)
    assert find_preset("mine") is OPTIONAL
    assert len(PRESETS) == count + 1
