"""The work of a step at full size is what was counted on the real network, and follows its shapes."""

from __future__ import annotations

import pytest
import torch

from kontext_fast.engine.flops import FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, Dimensions, Tokens, request_work, step_work
from tests.engine.transformers import Shape, expected, inputs_for, random_transformer

TERA = 1e12


def test_flops_of_a_full_step_at_full_size() -> None:
    full = step_work(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, "full")
    assert full.linear / TERA == pytest.approx(112.4, abs=0.05)
    assert full.attention / TERA == pytest.approx(53.1, abs=0.05)
    assert full.total / TERA == pytest.approx(165.5, abs=0.06)


def test_skipped_step_costs_one_block_or_nothing() -> None:
    assert step_work(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, "skipped").total == 0
    tested = step_work(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, "skipped", tests_first_block=True).total
    full = step_work(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, "full").total
    assert tested == pytest.approx(full / 57, rel=0.01)


def test_request_is_the_sum_of_its_steps() -> None:
    kinds = ["full", "skipped", "full"]
    one = [step_work(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, kind).total for kind in kinds]  # type: ignore[arg-type]
    assert request_work(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, kinds).total == pytest.approx(sum(one))  # type: ignore[arg-type]


def test_flops_equal_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    transformer = random_transformer(Shape(heads=4, head_dim=32, axes=(8, 12, 12)))
    inputs = inputs_for(transformer, text=20, image=(9, 10), reference=(8, 8))
    with (
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        expected(transformer, inputs)
    dimensions = Dimensions.of(transformer)
    tokens = Tokens(text=20, image=90, reference=64)
    modulations = 2 * dimensions.width**2 * (2 * 12 + 2 * 3 + 2)
    conditions = 2 * (2 * 256 * 128 + 2 * 128 * 128 + 12 * 128 + 128 * 128)
    # diffusers also computes the output of reference tokens, which nobody reads.
    unread = 2 * 64 * dimensions.width * 8
    counted = counter.get_total_flops() - modulations - conditions - unread
    assert step_work(dimensions, tokens, "full").total == pytest.approx(counted, rel=1e-9)
