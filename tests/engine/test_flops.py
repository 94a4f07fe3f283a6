"""The work of a step is what PyTorch counts while the engine computes it."""

from __future__ import annotations

import pytest
import torch

from kontext_fast.engine.flops import FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, Dimensions, Tokens, request_work, step_work
from tests.engine.transformers import SHAPES, Shape, engine_on, inputs_for, prepare, random_transformer, stepped

TERA = 1e12


def test_flops_of_a_full_step_at_full_size() -> None:
    full = step_work(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, "full")
    assert full.linear / TERA == pytest.approx(111.6, abs=0.05)
    assert full.attention / TERA == pytest.approx(52.6, abs=0.05)
    assert full.total / TERA == pytest.approx(164.2, abs=0.06)


def test_skipped_step_costs_one_block_or_nothing() -> None:
    assert step_work(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, "skipped").total == 0
    tested = step_work(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, "skipped", tests_first_block=True).total
    full = step_work(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, "full").total
    assert tested == pytest.approx(full / 56.5, rel=0.01)  # the last of 57 blocks is computed by half


def test_request_is_the_sum_of_its_steps() -> None:
    kinds = ["full", "skipped", "full"]
    one = [step_work(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, kind).total for kind in kinds]  # type: ignore[arg-type]
    assert request_work(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, kinds).total == pytest.approx(sum(one))  # type: ignore[arg-type]


@pytest.mark.parametrize("reference", [(8, 8), (0, 0)], ids=["edit", "text-to-image"])
@pytest.mark.parametrize("shape", [Shape(heads=4, head_dim=32, axes=(8, 12, 12)), SHAPES["double-only"]])
def test_flops_equal_those_that_torch_counts(shape: Shape, reference: tuple[int, int]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    transformer = random_transformer(shape)
    inputs = inputs_for(transformer, text=20, image=(9, 10), reference=reference)
    with engine_on(transformer) as engine:
        prepared = prepare(engine, inputs)
        with (
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            stepped(engine, prepared, inputs)
    tokens = Tokens(text=20, image=90, reference=reference[0] * reference[1])
    work = step_work(Dimensions.of(transformer), tokens, "full")
    assert work.total == pytest.approx(counter.get_total_flops(), rel=1e-9)
