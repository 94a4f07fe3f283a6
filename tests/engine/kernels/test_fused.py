"""A whole step of a transformer on fused kernels, against the same step on plain PyTorch."""

from __future__ import annotations

from contextlib import ExitStack
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from kontext_fast.engine.ops import Ops, PortableOps, Precision
from kontext_fast.engine.transformer import EngineTransformer
from kontext_fast.engine.weights import take_weights
from tests.engine.kernels.oracle import DEVICE, fused
from tests.engine.transformers import (
    Shape,
    expected,
    inputs_for,
    prepare,
    random_transformer,
    relative_error,
    stepped,
    tiny_transformer,
)

SHAPE = Shape(double=1, single=1, heads=3, head_dim=32, axes=(16, 8, 8))


def _stepped(ops: Ops, dtype: torch.dtype, precision: Precision) -> Tensor:
    transformer = random_transformer(SHAPE, dtype)
    device = DEVICE if ops.kernel == "fused" else "cpu"
    transformer = transformer.to(device)
    inputs = {
        name: None if value is None else value.to(device)
        for name, value in inputs_for(transformer, batch=2, text=3, image=(2, 2), reference=(1, 2)).items()
    }
    with ExitStack() as undo:
        engine = EngineTransformer(take_weights(transformer, precision, undo), ops)
        result = stepped(engine, prepare(engine, inputs), inputs)
    return result.cpu()


def test_float32_step_equals_plain_pytorch() -> None:
    truth = _stepped(PortableOps(), torch.float32, "bf16")
    assert relative_error(_stepped(fused(), torch.float32, "bf16"), truth) < (1e-5 if DEVICE == "cpu" else 3e-5)


def test_bfloat16_step_errs_no_more_than_plain_pytorch() -> None:
    truth = _stepped(PortableOps(), torch.float32, "bf16")
    plain = relative_error(_stepped(PortableOps(), torch.bfloat16, "bf16"), truth)
    assert 0 < relative_error(_stepped(fused(), torch.bfloat16, "bf16"), truth) < 1.1 * plain


def test_fp8_step_errs_no_more_than_the_emulation() -> None:
    truth = _stepped(PortableOps(), torch.float32, "bf16")
    emulated = _stepped(PortableOps(precision="fp8"), torch.bfloat16, "fp8")
    result = _stepped(fused(), torch.bfloat16, "fp8")
    assert relative_error(result, emulated) < 0.7 * relative_error(emulated, truth)
    assert relative_error(result, truth) < 1.1 * relative_error(emulated, truth)


def test_int8_step_errs_no_more_than_plain_pytorch() -> None:
    truth = _stepped(PortableOps(), torch.float32, "bf16")
    plain = relative_error(_stepped(PortableOps(precision="int8"), torch.bfloat16, "int8"), truth)
    error = relative_error(_stepped(fused("int8"), torch.bfloat16, "int8"), truth)
    assert error < 1.1 * plain


@pytest.mark.slow
def test_bundled_checkpoint_equals_diffusers() -> None:
    transformer = deepcopy(tiny_transformer())
    inputs = inputs_for(transformer, text=7, image=(3, 5), reference=(2, 4))
    truth = expected(transformer, inputs)
    transformer = transformer.to(DEVICE)
    moved = {name: None if value is None else value.to(DEVICE) for name, value in inputs.items()}
    with ExitStack() as undo:
        engine = EngineTransformer(take_weights(transformer, "bf16", undo), fused())
        result = stepped(engine, prepare(engine, moved), moved)
    assert relative_error(result.cpu(), truth) < 1e-4
