"""Kernels of attention are found in their package: a new one is a file, and the engine takes it by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.backends import cuda
from torch.utils._python_dispatch import TorchDispatchMode

from kontext_fast.engine import attention
from kontext_fast.engine.dispatch import attention_kernel, attention_kernels, refusal
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.base import Effect
from kontext_fast.optimizations.techniques.engine import Engine
from tests.conftest import AddPlugin
from tools.docs.blocks import optimizations
from tools.docs.doc_context import DocContext
from tools.docs.result_tree import find_published

NEW_KERNEL = """
from kontext_fast.engine.attention.base import AttentionKernel

MEAN = AttentionKernel(
    "mean",
    lambda query, key, value: value.mean(1, keepdim=True).expand_as(query),
    devices=("cpu",),
    refusal=lambda capability: "never",
    effect="lossy",
)
"""


def test_default_is_cudnn_on_cuda_and_native_on_a_cpu() -> None:
    assert attention_kernel("auto", "cuda").name == "cudnn"
    assert attention_kernel("auto", "cpu").name == "native"


def test_kernels_are_found_by_name() -> None:
    names = {"cudnn", "efficient", "flash", "flash3", "flash3_fp8", "math", "native"}
    assert attention_kernels().keys() == names
    assert {attention_kernel(name, "cuda").name for name in names} == names
    with pytest.raises(InvalidInput, match="no attention kernel 'flash2'; did you mean flash or flash3"):
        attention_kernel("flash2", "cuda")


def test_kernel_is_refused_on_other_devices() -> None:
    assert refusal("cpu", None, "bf16", "math") is None
    assert refusal("cuda", None, "bf16", "math") is None
    assert "cudnn needs a CUDA device" in str(refusal("cpu", None, "bf16", "cudnn"))
    assert "native needs a CPU" in str(refusal("cuda", (9, 0), "bf16", "native"))
    assert "not supported on mps" in str(refusal("mps", None, "bf16", "math"))


def test_named_kernel_leaves_the_choice_of_other_threads_alone() -> None:
    """PyTorch's switches of kernels are those of the process: another thread may encode or decode at that moment."""
    switches = set()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            switches.add((cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()))
            return function(*args, **(kwargs or {}))

    query, key, value = torch.randn(3, 1, 8, 2, 16, generator=torch.Generator().manual_seed(0))
    with Seen():
        attended = attention_kernel("math", "cpu").run(query, key, value)
    assert switches == {(True, True, True)}
    torch.testing.assert_close(attended, attention_kernel("native", "cpu").run(query, key, value))


def test_new_kernel_is_one_file(add_plugin: AddPlugin, tmp_path: Path) -> None:
    add_plugin(attention, "mean_of_values", NEW_KERNEL, attention_kernels)
    engine = Engine(attention="mean")
    assert engine.effect is Effect.LOSSY
    assert "mean" in Engine.choices()["attention"]
    assert refusal("cpu", None, "bf16", "mean") is None
    value = torch.arange(6.0).view(1, 3, 1, 2)
    assert attention_kernel("mean", "cpu").run(value[:, :1], value, value).tolist() == [[[[2.0, 3.0]]]]
    with pytest.raises(InvalidInput, match="did you mean mean"):
        attention_kernel("meen", "cpu")
    assert "lossy in fp8, int8, flash3_fp8, mean" in optimizations.render(DocContext(find_published(tmp_path)))


def test_unknown_kernel_is_a_bad_parameter() -> None:
    with pytest.raises(InvalidInput, match="attention: There is no attention kernel 'mean'"):
        Engine(attention="mean")
