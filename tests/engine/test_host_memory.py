"""What goes to host memory in pieces arrives whole, and what goes to a GPU without waiting is the same."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from kontext_fast.engine.host_memory import _BUFFER_BYTES, _MOST_UPLOADED, HostMemory, Uploads
from tests import needs


@needs.gpu
@pytest.mark.parametrize("numbers", [1, 7, _BUFFER_BYTES // 2, _BUFFER_BYTES // 2 + 1, 2 * _BUFFER_BYTES + 5])
def test_copy_to_host_is_bit_identical(numbers: int) -> None:
    memory = HostMemory()
    for _ in range(3):  # buffers are used again
        tensor = torch.randn(numbers, dtype=torch.bfloat16, device="cuda")
        copied = memory.copy(tensor)
        assert copied.device.type == "cpu"
        assert torch.equal(copied, tensor.cpu())


def uploads_to_meta() -> tuple[Uploads, list[torch.Tensor]]:
    """One for the meta device, which takes no memory, and what it has put into pinned memory."""
    pinned: list[torch.Tensor] = []
    return Uploads("meta", lambda tensor: pinned.append(tensor) or tensor), pinned


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [(("meta",), {}), ((torch.device("meta"), torch.bfloat16), {}), ((), {"device": "meta", "dtype": torch.bfloat16})],
)
def test_upload_is_converted_in_host_memory(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    uploads, pinned = uploads_to_meta()
    source = torch.randn(3, 2)
    expected = source.to(*args, **kwargs)
    with uploads:
        actual = source.to(*args, **kwargs)
    assert (actual.device, actual.dtype, actual.shape) == (expected.device, expected.dtype, expected.shape)
    assert [tensor.dtype for tensor in pinned] == [expected.dtype]


def test_other_copies_are_left_alone() -> None:
    uploads, pinned = uploads_to_meta()
    weight = torch.nn.Parameter(torch.ones(2))
    with uploads:
        assert torch.ones(2).to(torch.float16).dtype is torch.float16
        assert torch.ones(2, device="meta").to("meta").device.type == "meta"
        assert weight.to("meta").requires_grad
        assert torch.ones(2).to("meta", memory_format=torch.contiguous_format).device.type == "meta"
        assert torch.empty(_MOST_UPLOADED + 1, dtype=torch.uint8).to("meta").device.type == "meta"
    assert pinned == []


def test_uploads_are_left_only_where_they_were_entered_last() -> None:
    uploads, _ = uploads_to_meta()
    assert not uploads.leave()
    uploads.enter()
    with TorchFunctionMode():  # somebody else's
        assert not uploads.leave()
    assert uploads.leave()
    assert _get_current_function_mode() is None


@needs.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float32, torch.int64])
def test_uploads_have_the_same_bits_and_do_not_wait(dtype: torch.dtype | None) -> None:
    sources = [torch.randn(64, 48).t(), torch.arange(77), torch.zeros(0, 3), torch.rand(9) > 0.5]
    expected = [source.to("cuda", dtype) for source in sources]
    uploads = Uploads()
    for _ in range(2):  # the first time pinned memory is allocated
        torch.cuda.synchronize()
        torch.cuda._sleep(1_000_000_000)
        began = time.perf_counter()
        with uploads:
            actual = [source.to("cuda", dtype) for source in sources]
        waited = time.perf_counter() - began
    assert waited < 0.2
    for mine, theirs in zip(actual, expected, strict=True):
        assert (mine.dtype, mine.stride()) == (theirs.dtype, theirs.stride())
        assert torch.equal(mine, theirs)
