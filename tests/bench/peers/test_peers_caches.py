"""The peers' caches on a real pipeline: the blocks of each step, counted independently, and the revert.

The caches of diffusers always run, those of other packages if these are installed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from kontext_fast.bench.peers import find_preset
from kontext_fast.bench.peers.block_tracer import blocks_of
from kontext_fast.bench.peers.techniques.cache_dit import CacheDit
from kontext_fast.bench.peers.techniques.diffusers_first_block_cache import DiffusersFirstBlockCache
from kontext_fast.bench.peers.techniques.diffusers_magcache import DiffusersMagCache
from kontext_fast.bench.peers.techniques.diffusers_taylorseer import DiffusersTaylorSeer
from kontext_fast.bench.peers.techniques.extrapolated_steps import ExtrapolatedSteps
from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.optimizations.acceleration import Acceleration, apply_plan
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.call_tracking import track_calls
from kontext_fast.optimizations.presets import resolve
from kontext_fast.pipeline.device import Machine
from kontext_fast.records.schema import StepKind
from tests import needs
from tests.contract.test_optimizations_contract import _traces
from tests.pipelines import render, small_pipeline

CPU = Machine.detect("cpu")

MASK = (1, 1, 0, 1, 0, 0)


def kinds_of(pattern: str) -> list[StepKind]:
    letters: dict[str, StepKind] = {"R": "full", "u": "full", ".": "skipped"}
    return [letters[letter] for letter in pattern]


CASES = [
    pytest.param(DiffusersFirstBlockCache(threshold=1e9), "R.....", id="first-block-always"),
    pytest.param(DiffusersFirstBlockCache(threshold=0), "RRRRRR", id="first-block-never"),
    pytest.param(DiffusersTaylorSeer(interval=2, warmup_steps=2), "RRuRuR", id="taylorseer"),
    pytest.param(DiffusersTaylorSeer(interval=2, warmup_steps=2, lite=True), "RR.R.R", id="taylorseer-lite"),
    pytest.param(DiffusersMagCache(threshold=1e9, max_skips=2), "R..R..", id="magcache"),
    pytest.param(DiffusersMagCache(max_skips=0), "RRRRRR", id="magcache-never"),
    pytest.param(ExtrapolatedSteps(first=2, last=1), "RR..RR", id="extrapolated-steps"),
    pytest.param(
        CacheDit(first_blocks=1, mask=MASK, policy="static", taylorseer_order=1), "RR.R..", id="cache-dit-static",
        marks=needs.cache_dit,
    ),
    pytest.param(
        CacheDit(first_blocks=2, mask=MASK, threshold=1e-9), "RRRRRR", id="cache-dit-dynamic-never",
        marks=needs.cache_dit,
    ),
    pytest.param(CacheDit(first_blocks=1), "RRRRRR", id="cache-dit-warm-up", marks=needs.cache_dit),
]  # fmt: skip


SKIPPING = [case for case in CASES if set(str(case.values[1])) != {"R"}]
DIFFUSERS = [case for case in SKIPPING if not str(case.id).startswith("cache-dit")]


@pytest.fixture
def pipe() -> Any:
    """Two blocks of each kind, used before: diffusers sets some attributes in the first call."""
    pipe = small_pipeline(2, 2)
    render(pipe, steps=1)
    return pipe


def applied(pipe: Any, *optimizations: Optimization) -> Acceleration:
    return apply_plan(resolve(optimizations, CPU), pipe)


@contextmanager
def module_calls(pipe: Any) -> Iterator[list[Counter[str]]]:
    """Per step, how often each kind of module inside the blocks ran: seen with torch's own hooks."""
    seen: list[Counter[str]] = [Counter()]
    transformer, scheduler = pipe.transformer, pipe.scheduler
    inside = [("attention", block.attn.to_q) for block in blocks_of(transformer)]
    inside += [("block", block.norm1) for block in transformer.transformer_blocks]
    inside += [("block", block.norm) for block in transformer.single_transformer_blocks]
    step = scheduler.step

    def end_step(*args: Any, **kwargs: Any) -> Any:
        seen.append(Counter())
        return step(*args, **kwargs)

    with ExitStack() as undo:
        for kind, module in inside:
            undo.callback(module.register_forward_hook(lambda *_, kind=kind: seen[-1].update([kind])).remove)
        scheduler.step = end_step
        undo.callback(delattr, scheduler, "step")
        yield seen


@pytest.mark.parametrize(("technique", "pattern"), CASES)
def test_step_kinds_match_the_blocks_that_ran(technique: Optimization, pattern: str, pipe: Any) -> None:
    untouched = render(pipe, steps=6)
    with applied(pipe, technique) as acceleration, module_calls(pipe) as calls:
        images = render(pipe, steps=6)
        kinds = acceleration.last_step_kinds()
    assert kinds == kinds_of(pattern)
    for letter, ran in zip(pattern, calls[:6], strict=True):
        if letter == ".":
            assert ran["block"] < 4
        else:
            assert (ran["block"], ran["attention"]) == (4, 4 if letter == "R" else 0)
    assert np.isfinite(images).all()
    assert np.array_equal(images, untouched) == (set(pattern) == {"R"})


@pytest.mark.parametrize(("technique", "pattern"), SKIPPING)
def test_cache_is_reverted_without_a_trace(technique: Optimization, pattern: str, pipe: Any) -> None:
    untouched, before = render(pipe), _traces(pipe)
    with applied(pipe, technique):
        render(pipe)
    assert _traces(pipe) == before
    np.testing.assert_array_equal(render(pipe), untouched)


@pytest.mark.parametrize(("technique", "pattern"), SKIPPING)
def test_requests_share_no_cache_state(technique: Optimization, pattern: str, pipe: Any) -> None:
    def stop(step: int) -> None:
        if step == 2:
            raise RuntimeError("stop")

    with applied(pipe, technique) as acceleration:
        first = render(pipe, steps=6)
        kinds = acceleration.last_step_kinds()
        render(pipe, seeds=(5,), steps=3)
        np.testing.assert_array_equal(render(pipe, steps=6), first)
        with pytest.raises(RuntimeError, match="stop"):
            render(pipe, seeds=(7,), steps=6, on_step=stop)
        np.testing.assert_array_equal(render(pipe, steps=6), first)
        assert acceleration.last_step_kinds() == kinds


@pytest.mark.parametrize(("technique", "pattern"), DIFFUSERS)
def test_passes_of_true_cfg_share_no_cache_state(technique: Optimization, pattern: str, pipe: Any) -> None:
    """With the prompt as negative prompt both passes are equal, so the image is that of a single pass."""
    prompt = "make the background red"
    with applied(pipe, technique) as acceleration:
        once = render(pipe, prompts=(prompt,), steps=6)
        twice = render(pipe, prompts=(prompt,), negative=prompt, steps=6)
        assert acceleration.last_step_kinds() == kinds_of(pattern)
    np.testing.assert_allclose(twice, once, rtol=0, atol=1e-5)


@needs.cache_dit
def test_cache_dit_refuses_unsupported_requests(pipe: Any) -> None:
    with applied(pipe, CacheDit(first_blocks=1)), pytest.raises(Refused, match="true CFG"):
        render(pipe, negative="blurry")
    with applied(pipe, CacheDit(first_blocks=1, mask="ultra")), pytest.raises(Refused, match="at least 8 steps"):
        render(pipe, steps=5)
    with pytest.raises(InvalidInput, match="8 blocks at every step and the transformer has 4"):
        applied(pipe, CacheDit())


@needs.cache_dit
@pytest.mark.parametrize("steps", [8, 28])
def test_mask_ultra_is_the_published_one(steps: int, pipe: Any) -> None:
    published = {8: "RR..R..R", 28: "RRRR..R.....R......R.......R"}
    ultra = CacheDit(first_blocks=1, mask="ultra", policy="static", taylorseer_order=1)
    with applied(pipe, ultra) as acceleration:
        render(pipe, steps=steps)
    assert acceleration.last_step_kinds() == kinds_of(published[steps])


def test_extrapolated_steps_are_the_scheme_of_the_study(pipe: Any) -> None:
    """The same schedule as a linear multistep rule, which computes with other code: they differ by rounding."""
    from kontext_fast.optimizations.techniques.solver import FittedSolver
    from kontext_fast.tuning.schemes import every_third

    with applied(pipe, ExtrapolatedSteps()) as acceleration:
        skipping = render(pipe, steps=12).astype(float)
        kinds = acceleration.last_step_kinds()
    assert kinds == kinds_of("RRR..R..RRRR")
    rule = every_third(pipe.scheduler.sigmas.tolist())
    with applied(pipe, FittedSolver(fitted=rule)):
        np.testing.assert_allclose(render(pipe, steps=12), skipping, atol=1e-3)


def test_magcache_follows_the_published_ratios(pipe: Any) -> None:
    """The schedule worked out by hand from the ratios: skip while |1 - product| adds up to at most the threshold."""
    technique = DiffusersMagCache()
    expected, product, error, skips = [], 1.0, 0.0, 0
    for step, ratio in enumerate(technique.ratios):
        if step < round(technique.retention * 28):
            expected.append("full")
            continue
        product, skips = product * ratio, skips + 1
        error += abs(1 - product)
        if error <= technique.threshold and skips <= technique.max_skips:
            expected.append("skipped")
        else:
            expected.append("full")
            product, error, skips = 1.0, 0.0, 0
    with apply_plan(resolve(find_preset("peer:magcache"), CPU), pipe) as acceleration:
        render(pipe, steps=28)
        assert acceleration.last_step_kinds() == expected
        assert 10 <= expected.count("full") <= 18


def test_second_cache_is_refused(pipe: Any) -> None:
    from diffusers.hooks import FirstBlockCacheConfig

    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(InvalidInput, match="has a cache already"):
        applied(pipe, DiffusersMagCache())


def test_call_outside_a_request_counts_no_step(pipe: Any) -> None:
    with applied(pipe, DiffusersMagCache()), ExitStack() as undo:
        requests = track_calls(pipe, undo)
        render(pipe, steps=2)
        before = requests.last.kinds
        with torch.no_grad():
            inputs = _transformer_inputs(pipe)
            pipe.transformer(**inputs)
        assert requests.last.kinds == before


def _transformer_inputs(pipe: Any) -> dict[str, Any]:
    config = pipe.transformer.config
    return {
        "hidden_states": torch.zeros(1, 4, config.in_channels),
        "encoder_hidden_states": torch.zeros(1, 3, config.joint_attention_dim),
        "pooled_projections": torch.zeros(1, config.pooled_projection_dim),
        "timestep": torch.ones(1),
        "guidance": torch.ones(1),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(3, 3),
    }
