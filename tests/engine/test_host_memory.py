"""What goes to host memory in pieces arrives whole."""

from __future__ import annotations

import pytest
import torch

from kontext_fast.engine.host_memory import _BUFFER_BYTES, HostMemory
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
