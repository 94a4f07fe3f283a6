"""Discovery of peers, and the plans of their recipes on several machines. Needs none of their packages."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kontext_fast.bench import peers
from kontext_fast.bench.peers import discover_peers, find_preset, recipes
from kontext_fast.bench.peers.techniques.cache_dit import CacheDit, resampled
from kontext_fast.bench.peers.techniques.diffusers_magcache import KONTEXT_RATIOS
from kontext_fast.bench.peers.techniques.fewer_steps import cell_for
from kontext_fast.bench.schedule import Schedule
from kontext_fast.bench.suites import read_suite
from kontext_fast.errors import InvalidInput, KontextError, Refused
from kontext_fast.optimizations import base
from kontext_fast.optimizations.presets import Plan, Preset, resolve
from kontext_fast.pipeline.device import Machine
from kontext_fast.records.schema import Cell
from tests.conftest import AddPlugin
from tools.docs.blocks import peers as peers_table
from tools.docs.doc_context import DocContext
from tools.docs.result_tree import find_published

CPU = Machine(device="cpu", memory_bytes=1, cxx="g++", cc="gcc", triton=False, torch="2.13.0", platform="linux-x86_64")
HOPPER = replace(CPU, device="cuda", gpu="NVIDIA H200", capability=(9, 0), triton=True)
AMPERE = replace(HOPPER, gpu="NVIDIA A100", capability=(8, 0))

NOT_HERE = ("peer:para-attention", "peer:regione")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extra were installed; planning imports none of its packages."""
    monkeypatch.setattr(base, "find_spec", lambda name: SimpleNamespace(name=name))


def plan_of(peer: str, machine: Machine, *, architecture_only: bool = False) -> Plan:
    return resolve(find_preset(peer), machine, architecture_only=architecture_only)


def names(plan: Plan) -> list[str]:
    return [optimization.name for optimization in plan.optimizations]


def test_discovery_finds_the_peers_of_the_comparison() -> None:
    assert set(discover_peers()) >= {
        *("peer:compiled", "peer:compiled-float8", "peer:flux-fast", "peer:flux-fast-per-tensor"),
        *("peer:cache-dit", "peer:cache-dit-ultra", "peer:cache-dit-12-of-28"),
        *("peer:first-block-cache", "peer:taylorseer", "peer:taylorseer-lite", "peer:magcache"),
        *("peer:steps-8", "peer:steps-12", "peer:steps-20"),
        *NOT_HERE,
    }
    assert list(discover_peers()) == sorted(discover_peers())
    for peer in discover_peers().values():
        assert peer.summary
        assert peer.source is not None
        assert peer.source.startswith("https://")


def test_listing_peers_imports_neither_torch_nor_a_peer() -> None:
    program = (
        "import sys; from kontext_fast.bench.peers import discover_peers; discover_peers();"
        "print([name for name in ('torch', 'diffusers', 'cache_dit', 'torchao') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_peer_names_the_closest_one() -> None:
    with pytest.raises(InvalidInput, match="did you mean peer:magcache"):
        find_preset("peer:magcahce")
    with pytest.raises(InvalidInput, match="no preset"):
        find_preset("magcache-only-diffusers_magcache")


def test_ablation_of_a_peer_keeps_its_other_parts() -> None:
    without = find_preset("peer:flux-fast-without-whole_compile")
    assert [part.name for part in without.optimizations] == ["diffusers_fused_qkv", "torchao_float8", "channels_last"]
    assert [part.name for part in without.optional] == ["flash_attention_3_fp8"]
    only = find_preset("peer:compiled-only-regional_compile")
    assert ([part.name for part in only.optimizations], only.optional) == (["regional_compile"], ())


def test_peer_without_the_prefix_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "values", lambda *_: {"fastest": Preset("fastest", "a recipe", ())})
    discover_peers.cache_clear()
    with pytest.raises(KontextError, match="call it 'peer:fastest'"):
        discover_peers()
    discover_peers.cache_clear()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("preset", sorted(set(discover_peers()) - set(NOT_HERE)))
def test_hopper_runs_all_recipes_except_unpackaged_attention(preset: str) -> None:
    plan = plan_of(preset, HOPPER)
    peer = find_preset(preset)
    left_out = {"flash_attention_3_fp8"} if find_spec("flash_attn_interface") is None else set()
    assert set(names(plan)) == {optimization.name for optimization in (*peer.optimizations, *peer.optional)} - left_out
    without = [label for label in plan.labels if label.startswith("without ")]
    assert len(without) == (1 if "flux-fast" in preset and left_out else 0)
    phases = [optimization.phase for optimization in plan.optimizations]
    assert phases == sorted(phases)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("machine", [CPU, AMPERE], ids=["cpu", "ampere"])
def test_optional_parts_left_out_are_labelled(machine: Machine) -> None:
    plan = plan_of("peer:cache-dit-ultra", machine)
    on_a_gpu = ["cudnn_attention", "compiled_blocks"] if machine is AMPERE else []
    assert names(plan) == [*on_a_gpu, "cache_dit"]
    without = [label.split()[1] for label in plan.labels if label.startswith("without ")]
    assert sorted([*without, *on_a_gpu]) == ["compiled_blocks", "cudnn_attention", "torchao_float8"]


@pytest.mark.usefixtures("installed")
def test_recipe_without_its_main_technique_is_refused() -> None:
    with pytest.raises(Refused, match=r"compute capability 8\.9"):
        plan_of("peer:compiled-float8", AMPERE)
    with pytest.raises(Refused, match="tunes for a GPU"):
        plan_of("peer:flux-fast", CPU)
    assert names(plan_of("peer:compiled", CPU)) == ["regional_compile"]


def test_missing_package_refuses_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"cache_dit needs the package cache_dit; run `pip install .*\[peers\]`"):
        plan_of("peer:cache-dit", CPU)
    with pytest.raises(Refused, match="torchao_float8 needs the package torchao"):
        plan_of("peer:magcache", HOPPER)
    assert "diffusers_magcache" in names(plan_of("peer:magcache", CPU))


@pytest.mark.parametrize("preset", NOT_HERE)
@pytest.mark.parametrize("machine", [CPU, HOPPER], ids=["cpu", "hopper"])
def test_unsupported_peer_is_refused_with_its_reason(preset: str, machine: Machine) -> None:
    with pytest.raises(Refused, match=r"TypeError|cannot be installed"):
        plan_of(preset, machine)


@pytest.mark.usefixtures("installed")
def test_random_weights_use_masks_and_label_thresholds() -> None:
    (ultra,) = plan_of("peer:cache-dit-ultra", HOPPER, architecture_only=True).optimizations[3:]
    assert ultra.parameters()["policy"] == "static"
    for preset in ("peer:cache-dit", "peer:first-block-cache"):
        labels = plan_of(preset, HOPPER, architecture_only=True).labels
        assert any("hit rate meaningless" in label for label in labels)
        assert not any("hit rate" in label for label in plan_of(preset, HOPPER).labels)


def test_fewer_steps_change_the_measured_cell() -> None:
    requested = Cell(mode="edit", size="1024x1024", steps=28, batch=1)
    for steps in (8, 12, 20):
        plan = plan_of(f"peer:steps-{steps}", CPU)
        assert cell_for(plan, requested) == requested.model_copy(update={"steps": steps})
        assert f"runs {steps} steps where 28 are asked for" in plan.labels
        assert plan.applied[-1].effect == "lossy"
    eight = plan_of("peer:steps-8", CPU)
    assert [cell_for(eight, requested.model_copy(update={"steps": n})).steps for n in (1, 4, 50)] == [1, 1, 14]
    assert cell_for(plan_of("peer:magcache", CPU), requested) is requested


def test_masks_and_ratios_have_one_value_per_step() -> None:
    assert len(KONTEXT_RATIOS) == 28
    (ours,) = find_preset("peer:cache-dit-12-of-28").optimizations
    assert isinstance(ours, CacheDit)
    assert isinstance(ours.mask, tuple)
    assert (len(ours.mask), sum(ours.mask), ours.mask[-1]) == (28, 12, 1)
    assert resampled(ours.mask, 28) == list(ours.mask)
    for total in (1, 2, 10, 50):
        mask = resampled(ours.mask, total)
        assert (len(mask), mask[0], mask[-1]) == (total, 1, 1)


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [({"mask": (0, 1)}, "must compute step 0"), ({"mask": ()}, "must compute"), ({"policy": "static"}, "needs a mask")],
)
def test_impossible_mask_is_bad_input(parameters: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        CacheDit(**parameters)


RECIPE = """
from kontext_fast.bench.peers.techniques.fewer_steps import FewerSteps
from kontext_fast.optimizations.presets import declare_preset

DUMMY = declare_preset("peer:dummy", "a dummy", (FewerSteps(steps_of_28=2),), source="https://example.org")
"""


def test_new_recipe_is_a_peer_everywhere(add_plugin: AddPlugin, tmp_path: Path) -> None:
    add_plugin(recipes, "dummy", RECIPE, discover_peers)
    assert names(plan_of("peer:dummy", CPU)) == ["fewer_steps"]
    suite = read_suite("quick").resolve("tiny").override(peers=tuple(discover_peers()))
    assert "peer:dummy" in {run.configuration.preset for run in Schedule(suite).remaining([], None)}
    assert "| `peer:dummy` | a dummy" in peers_table.render(DocContext(find_published(tmp_path)))
