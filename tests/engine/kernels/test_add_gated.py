"""The gated residual, in place, and nothing beside it."""

from __future__ import annotations

import torch

from tests.engine.kernels.oracle import DEVICE, DTYPES, SIZES, assert_rounds_once, fused, noise, window


@DTYPES
@SIZES
def test_add_gated_writes_its_stream_only(batch: int, rows: int, width: int, dtype: torch.dtype) -> None:
    before, update = noise(batch, rows, width, dtype=dtype), noise(batch, rows, width, dtype=dtype, seed=1)
    modulation = noise(batch, 3 * width, dtype=dtype, seed=2)
    stream = window(before)
    whole = stream._base
    assert whole is not None
    outside = whole.isnan()
    fused().add_gated(stream, modulation.to(DEVICE).chunk(3, -1)[2], update.to(DEVICE))
    gate = modulation.float().chunk(3, -1)[2]
    assert_rounds_once(stream.contiguous(), before.float() + gate[:, None] * update.float(), dtype)
    assert torch.equal(whole.isnan(), outside)
