"""Whose weights they are, by a few rows: the same in every precision, another for every change that matters."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import torch

from kontext_fast.optimizations.weight_identity import identity_of
from tests.pipelines import small_pipeline


@pytest.fixture(scope="module")
def transformer() -> Any:
    return small_pipeline().transformer


def test_it_does_not_depend_on_the_precision(transformer: Any) -> None:
    identity = identity_of(transformer)
    assert identity == identity_of(transformer)
    # The checkpoint is stored in bfloat16.
    assert identity == identity_of(copy.deepcopy(transformer).to(torch.bfloat16))


def test_a_merged_lora_changes_the_matrices_alone(transformer: Any) -> None:
    before = identity_of(transformer)
    for name in ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_out", "x_embedder"):
        merged = copy.deepcopy(transformer)
        weight = merged.get_submodule(name).weight.data
        weight += 0.05 * torch.randn(len(weight), 2) @ torch.randn(2, weight.shape[1])
        after = identity_of(merged)
        assert after.matrices != before.matrices
        assert not before.differs(after)


@pytest.mark.parametrize("row", [0, 3, 6, 9])
def test_first_last_and_rows_between_are_looked_at(row: int) -> None:
    matrix = torch.nn.Linear(2, 10, bias=False)
    before = identity_of(matrix)
    matrix.weight.data[row] += 1
    assert identity_of(matrix).matrices != before.matrices


def test_whole_numbers_are_compared_as_they_are() -> None:
    """Those of a quantized layer, which bfloat16 would round."""

    def quantized(last: int) -> Any:
        layer = torch.nn.Linear(2, 1, bias=False)
        layer.weight = torch.nn.Parameter(torch.tensor([[1, last]]), requires_grad=False)
        return layer

    assert identity_of(quantized(1000)) == identity_of(quantized(1000))
    assert identity_of(quantized(1000)) != identity_of(quantized(1001))


def test_it_does_not_depend_on_the_order_of_the_modules() -> None:
    parts = {name: torch.nn.Linear(2, 3) for name in ("first", "second")}
    reversed_parts = dict(reversed(parts.items()))
    assert list(reversed_parts) != list(parts)
    assert identity_of(torch.nn.ModuleDict(parts)) == identity_of(torch.nn.ModuleDict(reversed_parts))


def test_another_model_changes_the_vectors(transformer: Any) -> None:
    before = identity_of(transformer)
    trained, larger = copy.deepcopy(transformer), small_pipeline(double=2).transformer
    trained.proj_out.bias.data += 0.01
    assert before.differs(identity_of(trained))
    assert before.differs(identity_of(larger))


def test_large_matrices_are_sampled_and_not_read(transformer: Any) -> None:
    class Large(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(2048, 8192, device="meta") for _ in range(40))
            self.to_empty(device="cpu")

    large = Large()
    start = time.perf_counter()
    identity_of(large)
    assert time.perf_counter() - start < 0.5
