"""Run every kernel of ours at odd sizes and hold it against PyTorch, for a tool that watches memory accesses.

Usage: PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \
    --kernel-name 'regex=^_[^Z]' python -m benchmarks.gpu.sanitizer_check [--only PART ...] [--out FILE.json]

Without a cache each tensor is an allocation of its own, so that an access beside it is one beside all memory. Names of
Triton's kernels, which are ours, begin with `_`, and those of C++ with `_Z`: watching these too takes many times as
long. Run it without the tool first, which leaves the compiled kernels where the run under the tool finds them. Parts:
VAE, softmax, and the precisions of a step. Exit code 0: all is right; 1: a kernel computes something else; 3: no GPU;
9: the tool found an access that is none.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu import kernel_check
from benchmarks.gpu.check import NO_GPU, has_gpu, option_parser, write_report
from kontext_fast.engine.dispatch import refusal
from kontext_fast.engine.kernels.between_convolutions import add_bias, double_sides, softmax
from kontext_fast.engine.kernels.group_norm_silu import group_norm_silu
from kontext_fast.engine.kernels.safe_softmax import safe_softmax
from kontext_fast.engine.ops import PRECISIONS, Precision

_IMAGES = [(1, 128, 9, 31), (2, 32, 5, 3), (1, 96, 33, 17), (3, 32, 1, 1), (1, 512, 64, 64)]
"""Samples, channels, height, width."""
_ROWS = [1, 300, 5000, 16384]
"""Numbers of a row of attention scores."""
_STEPS = [(2, 7, 5, 32), (1, 65, 24, 128)]
"""As `kernel_check.SIZES`."""


def main() -> int:
    """Run, print and store, one part after the other."""
    parser = option_parser(__doc__)
    parts: dict[str, Callable[[], bool]] = {
        "VAE": lambda: all(vae_kernels_are_right("cuda", size) for size in _IMAGES),
        "softmax": lambda: all(softmax_is_right("cuda", numbers) for numbers in _ROWS),
        **{precision: partial(step_is_right, precision) for precision in PRECISIONS},
    }
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts), metavar="PART")
    arguments = parser.parse_args()
    if not has_gpu():
        return NO_GPU
    report: dict[str, bool] = {}
    for part in arguments.only:
        if part in PRECISIONS and refusal("cuda", torch.cuda.get_device_capability(), part):
            continue
        began = time.perf_counter()
        report[part] = parts[part]()
        torch.cuda.synchronize()
        print(f"{part}: {'right' if report[part] else 'WRONG'}, {time.perf_counter() - began:.1f} s", flush=True)
        write_report(report, arguments.out)
    return 0 if all(report.values()) else 1


def step_is_right(precision: Precision) -> bool:
    """Whether the operations of a step in bfloat16 are right that a step in `precision` calls."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills newly allocated memory with NaN
    checks = list(kernel_check.run_checks(precision, _STEPS, [torch.bfloat16]))
    torch.use_deterministic_algorithms(False)
    for check in checks:
        if not check.passed:
            print(f"  WRONG: {check}")
    return all(check.passed for check in checks)


def vae_kernels_are_right(device: str, size: tuple[int, int, int, int]) -> bool:
    """Whether those between the convolutions have PyTorch's bits, and the norm its numbers, for images of `size`."""
    torch.manual_seed(0)
    image, residual = (
        torch.randn(size, device=device).bfloat16().contiguous(memory_format=torch.channels_last) for _ in range(2)
    )
    bias, weight = torch.randn(2, size[1], device=device).bfloat16()
    norm = functional.silu(functional.group_norm(image.float(), 32, weight.float(), bias.float(), 1e-6))
    added = add_bias(image.clone(), bias, residual)
    return (
        torch.equal(double_sides(image), functional.interpolate(image, scale_factor=2.0, mode="nearest"))
        and torch.equal(added, residual + (image + bias[:, None, None]))
        and _close(group_norm_silu(image, 32, weight, bias, 1e-6), norm)
    )


def softmax_is_right(device: str, numbers: int) -> bool:
    """Whether the softmax over rows of so many `numbers` is PyTorch's, and that of scores with masked rows its bits."""
    scores = torch.randn(2, 3, numbers, device=device) * 40
    right = _close(softmax(scores, 0.25, torch.bfloat16), torch.softmax(scores * 0.25, -1))
    scores[0, 1] = -torch.inf
    return right and torch.equal(safe_softmax(scores), torch.ops.aten._safe_softmax(scores, -1))


def _close(result: Tensor, expected: Tensor) -> bool:
    return torch.allclose(result.float(), expected, rtol=2**-6, atol=2**-6 * float(expected.abs().max()))


if __name__ == "__main__":
    sys.exit(main())
