"""Query, key and value in the joint buffers: the promised rows, and no others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kontext_fast.engine.ops import JointQKV, QKNorm, Rope
from kontext_fast.errors import InvalidInput, KontextError
from tests.engine.kernels.oracle import DEVICE, DTYPES, assert_rounds_once, fused, noise, portable, window

HEADS = pytest.mark.parametrize(
    ("batch", "rows", "heads", "channels"),
    [(1, 1, 3, 32), (2, 7, 5, 32), (1, 65, 2, 16), (2, 2, 24, 128), (1, 3, 9, 128)],
    ids=lambda size: str(size),
)
BEFORE, AFTER = 5, 4


def _joint(batch: int, rows: int, heads: int, channels: int, dtype: torch.dtype, device: str) -> JointQKV:
    shape = (3, batch, BEFORE + rows + AFTER, heads, channels)
    return JointQKV(*torch.full(shape, float("nan"), dtype=dtype, device=device))


def _rope(rows: int, channels: int) -> Rope:
    angles = noise(rows, channels // 2, seed=3)
    return Rope(angles.cos(), angles.sin())


def _norm(channels: int, dtype: torch.dtype) -> QKNorm:
    return QKNorm(noise(channels, dtype=dtype, seed=4), noise(channels, dtype=dtype, seed=5), 1e-6)


def _moved(norm: QKNorm, rope: Rope) -> tuple[QKNorm, Rope]:
    return QKNorm(norm.query.to(DEVICE), norm.key.to(DEVICE), norm.eps), Rope(rope.cos.to(DEVICE), rope.sin.to(DEVICE))


@DTYPES
@HEADS
def test_write_qkv_writes_its_rows_only(batch: int, rows: int, heads: int, channels: int, dtype: torch.dtype) -> None:
    width = heads * channels
    qkv = noise(batch, rows, 3 * width, dtype=dtype)
    norm, rope = _norm(channels, dtype), _rope(rows, channels)
    truth = _joint(batch, rows, heads, channels, torch.float32, "cpu")
    wide = QKNorm(norm.query.float(), norm.key.float(), norm.eps)
    portable.write_qkv(qkv.float(), wide, rope, truth, BEFORE)

    joint = _joint(batch, rows, heads, channels, dtype, DEVICE)
    fused().write_qkv(window(qkv), *_moved(norm, rope), joint, BEFORE)
    written = slice(BEFORE, BEFORE + rows)
    for result, wanted in ((joint.query, truth.query), (joint.key, truth.key)):
        assert_rounds_once(result[:, written].contiguous(), wanted[:, written], dtype)
        _assert_poisoned(result, written)
    assert torch.equal(joint.value[:, written].cpu().float(), truth.value[:, written])
    _assert_poisoned(joint.value, written)


def _assert_poisoned(buffer: Tensor, written: slice) -> None:
    assert buffer[:, : written.start].isnan().all()
    assert buffer[:, written.stop :].isnan().all()


@HEADS
def test_float8_is_what_plain_pytorch_writes(batch: int, rows: int, heads: int, channels: int) -> None:
    qkv = noise(batch, rows, 3 * heads * channels, dtype=torch.bfloat16)
    norm, rope = _norm(channels, torch.bfloat16), _rope(rows, channels)
    # None so small that a number leaves the range of e4m3, where plain PyTorch gives NaN and a card the largest number.
    scales = torch.exp2(torch.arange(3.0 * batch) + 2).view(3, batch)
    buffers = torch.full((3, batch, BEFORE + rows + AFTER, heads, channels), torch.nan).to(torch.float8_e4m3fn)
    expected, joint = JointQKV(*buffers.clone(), scales), JointQKV(*buffers.to(DEVICE), scales.to(DEVICE))
    wide = QKNorm(norm.query.float(), norm.key.float(), norm.eps)
    portable.write_qkv(qkv.float(), wide, rope, expected, BEFORE)
    fused().write_qkv(window(qkv), *_moved(norm, rope), joint, BEFORE)
    written = slice(BEFORE, BEFORE + rows)
    assert torch.equal(joint.value.cpu().float().nan_to_num(1e4), expected.value.float().nan_to_num(1e4))
    for result, wanted in ((joint.query, expected.query), (joint.key, expected.key)):
        _assert_poisoned(result.float(), written)
        numbers, truth = (part[:, written].cpu().float() for part in (result, wanted))
        # Where float32 sums differ in the last bit, a number may fall to the other side of a tie.
        assert (numbers != truth).float().mean() < 0.01
        torch.testing.assert_close(numbers, truth, rtol=0.13, atol=2**-9)


@DTYPES
def test_all_tokens_keep_their_value_where_it_is(dtype: torch.dtype) -> None:
    qkv, norm, rope = noise(2, 7, 3 * 96, dtype=dtype).to(DEVICE), *_moved(_norm(32, dtype), _rope(7, 32))
    shape = 3, 2, 7, 3, 32
    expected, joint = (JointQKV(*torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)) for _ in range(2))
    fused().write_qkv(qkv, norm, rope, expected, 0)
    result = fused().write_all_qkv(qkv, norm, rope, joint)
    for part, wanted in zip(_parts(result), _parts(expected), strict=True):
        assert torch.equal(part, wanted)
    assert result.value.untyped_storage().data_ptr() == qkv.untyped_storage().data_ptr()
    assert joint.value.isnan().all()


def test_all_tokens_for_quantized_attention_are_written() -> None:
    qkv, norm, rope = noise(1, 4, 3 * 96).to(DEVICE), *_moved(_norm(32, torch.float32), _rope(4, 32))
    scales = torch.full((3, 1), 4.0, device=DEVICE)
    buffers = torch.full((3, 1, 4, 3, 32), torch.nan).to(torch.float8_e4m3fn)
    expected, joint = (JointQKV(*buffers.clone().to(DEVICE), scales) for _ in range(2))
    fused().write_qkv(qkv, norm, rope, expected, 0)
    assert fused().write_all_qkv(qkv, norm, rope, joint) is joint
    for part, wanted in zip(_parts(joint), _parts(expected), strict=True):
        assert torch.equal(part.view(torch.uint8), wanted.view(torch.uint8))


def _parts(joint: JointQKV) -> tuple[Tensor, ...]:
    return joint.query, joint.key, joint.value


def test_view_of_a_larger_buffer_keeps_its_rows() -> None:
    norm, rope = _norm(32, torch.float32), _rope(4, 32)
    qkv = noise(1, 4, 3 * 96)
    whole = _joint(3, 4, 3, 32, torch.float32, DEVICE)
    second = JointQKV(whole.query[1:2], whole.key[1:2], whole.value[1:2])
    fused().write_qkv(qkv.to(DEVICE), *_moved(norm, rope), second, BEFORE)
    for buffer in (whole.query, whole.key, whole.value):
        assert buffer[(0, 2),].isnan().all()
        assert not buffer[1, BEFORE : BEFORE + 4].isnan().any()


def test_rows_of_a_rotation_are_views() -> None:
    """The image's rows of a rotation begin in the middle of it."""
    norm, rope = _norm(32, torch.float32), _rope(9, 32)
    qkv = noise(1, 4, 3 * 96)
    truth, joint = _joint(1, 4, 3, 32, torch.float32, "cpu"), _joint(1, 4, 3, 32, torch.float32, DEVICE)
    portable.write_qkv(qkv, norm, rope.rows(5, 9), truth, 0)
    norm, rope = _moved(norm, rope)
    fused().write_qkv(qkv.to(DEVICE), norm, rope.rows(5, 9), joint, 0)
    torch.testing.assert_close(joint.query.cpu(), truth.query, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_head_dim_not_a_power_of_two_is_refused() -> None:
    norm, rope = _moved(_norm(24, torch.float32), _rope(2, 24))
    with pytest.raises(InvalidInput, match="these have 24"):
        fused().write_qkv(
            noise(1, 2, 3 * 48).to(DEVICE), norm, rope, _joint(1, 2, 2, 24, torch.float32, DEVICE), BEFORE
        )


def test_other_buffer_layout_is_refused() -> None:
    norm, rope = _moved(_norm(32, torch.float32), _rope(2, 32))
    joint = _joint(1, 2, 3, 32, torch.float32, DEVICE)
    transposed = JointQKV(joint.query, joint.key.transpose(1, 2).contiguous().transpose(1, 2), joint.value)
    with pytest.raises(KontextError, match="another layout"):
        fused().write_qkv(noise(1, 2, 3 * 96).to(DEVICE), norm, rope, transposed, BEFORE)
