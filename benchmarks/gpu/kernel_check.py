"""Check every fused kernel on this machine's GPU against plain PyTorch, then time each at the sizes of a real step.

Usage: python -m benchmarks.gpu.kernel_check [--out FILE.json] [--no-timing] [--attention KERNEL]

Exit code 0: all kernels are right; 1: a kernel is wrong; 3: this machine cannot run them.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from benchmarks.gpu.check import NO_GPU, has_gpu, option_parser, timed, write_report
from benchmarks.gpu.kernel_stages import DEVICE, Draw, Stage, joint_qkv, stages
from kontext_fast.engine.attention.base import AttentionKernel
from kontext_fast.engine.attention.pytorch import MATH
from kontext_fast.engine.dispatch import AUTO, attention_kernel, fastest_attention, refusal
from kontext_fast.engine.flops import FLUX_KONTEXT_DEV
from kontext_fast.engine.kernels.registry import Call, Inputs, Operation, kernels
from kontext_fast.engine.ops import PRECISIONS, Linear, Ops, PortableOps, Precision, Quantized, quantize

Size = tuple[int, int, int, int]

SIZES: list[Size] = [(1, 1, 3, 32), (2, 7, 5, 32), (1, 65, 9, 128), (3, 129, 24, 128), (1, 1003, 24, 128)]
"""Samples, rows, heads, channels of a head."""


def _layer(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    width = inputs.dimensions.width
    return inputs.draw(inputs.batch, inputs.rows, width), inputs.draw(2 * width, width), inputs.draw(2 * width)


def _linear(inputs: Inputs) -> Call:
    x, weight, bias = _layer(inputs)

    def call(ops: Ops, rounds: bool) -> list[Tensor]:
        return [ops.linear(quantize(x) if rounds else x, Linear(quantize(weight) if rounds else weight, bias))]

    return call


LINEAR = Operation("linear", _linear, quantizes={"bf16": (False,), "fp8": (True,)})
"""The libraries' matrix products, which are checked like our kernels."""


@dataclass(frozen=True)
class Check:
    """One operation on one input: the error against float32 of the kernel and of plain PyTorch in the same dtype."""

    precision: Precision
    operation: str
    quantized: bool
    dtype: str
    size: Size
    error: float
    error_of_plain_pytorch: float
    writes_what_it_should: bool

    @property
    def passed(self) -> bool:
        # Hopper's fast accumulation of float8 products keeps fewer bits of a sum than float32; on an H200 the error was
        # 1.53 times that of plain PyTorch at 3,072 channels, a twentieth of the error of rounding the operands.
        allowed = 1.75 if self.operation == "linear" and self.precision == "fp8" else 1.25
        return self.writes_what_it_should and self.error <= allowed * self.error_of_plain_pytorch + 2e-6


def run_checks(
    precision: Precision,
    sizes: Sequence[Size] = SIZES,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float32),
) -> Iterator[Check]:
    """All operations on all sizes, with all memory that an operation allocates filled with NaN beforehand."""
    ours = [operation for kernel in kernels().values() for operation in kernel.operations]
    for operation in (*ours, LINEAR):
        for rounds in sorted(set(operation.quantizes.get(precision, ()))):
            for dtype in dtypes:
                if dtype == torch.float32 and precision != "bf16" and "linear" in operation.name:
                    continue  # refused: quantized products return bfloat16
                for seed, size in enumerate(sizes):
                    yield _check(precision, operation, dtype, size, rounds, seed)


def _check(
    precision: Precision, operation: Operation, dtype: torch.dtype, size: Size, rounds: bool, seed: int
) -> Check:
    batch, rows, heads, channels = size
    dimensions = replace(FLUX_KONTEXT_DEV, heads=heads, head_dim=channels)

    def outputs(ops: Ops, input_dtype: torch.dtype, quantized: bool) -> Tensor:
        draw = Draw(input_dtype, torch.Generator(DEVICE).manual_seed(seed))
        results = operation.bind(Inputs(dimensions, batch, rows, draw, draw.window))(ops, quantized)
        tensors = [result.dequantized() if isinstance(result, Quantized) else result for result in results]
        return torch.cat([tensor.flatten() for tensor in tensors])

    plain, fused = PortableOps(MATH, precision), fused_ops(precision)
    # The reference for a product of quantized matrices is the product of the same quantized matrices.
    reference = outputs(plain, torch.float32, rounds and operation is LINEAR).double()
    fused_result, plain_result = (outputs(ops, dtype, rounds).double() for ops in (fused, plain))
    written = ~reference.isnan()

    def error(result: Tensor) -> float:
        return float((result[written] - reference[written]).norm() / reference[written].norm())

    return Check(
        precision,
        operation.name,
        rounds,
        str(dtype).removeprefix("torch."),
        size,
        error(fused_result),
        error(plain_result),
        writes_what_it_should=bool((fused_result.isnan() == reference.isnan()).all()),
    )


@dataclass(frozen=True)
class Timing:
    """`seconds` is the median of a call among many in a CUDA graph, over inputs that are in no cache."""

    step: str
    stage: str
    times_per_step: int
    first_call_seconds: float
    seconds: float
    bytes_per_second: float | None
    flop_per_second: float | None

    @property
    def seconds_per_step(self) -> float:
        return self.seconds * self.times_per_step

    def rate(self, ceiling: float | None) -> str:
        """`ceiling`: bytes per second of a copy."""
        if self.flop_per_second is not None:  # a product that joins what it gives moves bytes besides
            return f"{self.flop_per_second / 1e12:5.0f} TFLOP/s"
        moved = self.bytes_per_second or 0.0
        return f"{moved / 1e12:5.2f} TB/s, {moved / (ceiling or 1):.0%} of a copy"


def run_timing(step: str, stage: Stage, *, launches: int = 8, replays: int = 9) -> Timing:
    """Warm up, capture `launches` calls in a graph, replay it."""
    calls = [stage.inputs() for _ in range(max(2, round(400e6 / max(stage.moved, 100e6))))]
    torch.cuda.synchronize()
    start = time.perf_counter()
    calls[0]()
    torch.cuda.synchronize()
    first_call_s = time.perf_counter() - start
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for call in calls:
            call()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [calls[index % len(calls)]() for index in range(launches)]
    samples = [timed(graph.replay)[0] / launches for _ in range(replays + 2)][2:]
    del outputs
    seconds = statistics.median(samples)
    return Timing(
        step,
        stage.name,
        stage.times,
        first_call_s,
        seconds,
        stage.moved / seconds if stage.moved else None,
        stage.flop / seconds if stage.flop else None,
    )


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a copy on the device: the ceiling of element-wise kernels."""
    source = torch.randn(2**28, device=DEVICE)
    target = torch.empty_like(source)
    graph = torch.cuda.CUDAGraph()
    # An element-wise kernel, since a graph runs `copy_` on a copy engine, which is slower.
    torch.neg(source, out=target)
    with torch.cuda.graph(graph):
        torch.neg(source, out=target)
    return 2 * source.nbytes / statistics.median(timed(graph.replay)[0] for _ in range(9))


@dataclass
class Report:
    """All results."""

    gpu: str
    capability: tuple[int, int]
    torch: str
    triton: str
    cuda: str | None
    checks: list[Check] = field(default_factory=list)
    copy_bytes_per_second: float | None = None
    attention_leaves_rows_in_place: bool | None = None
    """Whether the next layer can read attention's output without a copy."""
    timings: list[Timing] = field(default_factory=list)


def fused_ops(precision: Precision, attention: AttentionKernel = MATH) -> Ops:
    """The fused kernels that quantize to `precision`, if at all."""
    from kontext_fast.engine.kernels.fused import FusedInt8Ops, FusedOps

    return (FusedInt8Ops if precision == "int8" else FusedOps)(attention)


def time_everything(attention: AttentionKernel, report: Report, precisions: list[Precision]) -> None:
    """A full step of a 1024x1024 edit in every precision."""
    report.copy_bytes_per_second = copy_bandwidth()
    for precision in precisions:
        ops = fused_ops(precision, attention)
        report.attention_leaves_rows_in_place = ops.attention(joint_qkv(ops, 4608))._is_view()
        for stage in stages(ops, 512, 8192, precision):
            report.timings.append(run_timing(f"full {precision}", stage))
            torch.cuda.empty_cache()


def table(report: Report) -> str:
    """The report as text; the most important lines are last."""
    lines = []
    for step in dict.fromkeys(timing.step for timing in report.timings):
        timings = [timing for timing in report.timings if timing.step == step]
        total = sum(timing.seconds_per_step for timing in timings)
        calls = sum(timing.times_per_step for timing in timings)
        lines.append(f"\n{step} step: {1000 * total:.1f} ms in {calls} calls")
        for timing in sorted(timings, key=lambda timing: -timing.seconds_per_step):
            lines.append(
                f"  {timing.stage:28} {timing.times_per_step:4} x {1e6 * timing.seconds:8.1f} us"
                f" {timing.seconds_per_step / total:6.1%}  {timing.rate(report.copy_bytes_per_second)}"
            )
    if report.timings:
        copied = "without a copy" if report.attention_leaves_rows_in_place else "from a copy"
        first_calls_s = sum(timing.first_call_seconds for timing in report.timings)
        lines.append(f"\nthe next layer reads attention's output {copied}; all first calls took {first_calls_s:.1f} s")
    failed = [check for check in report.checks if not check.passed]
    lines.append(f"{len(report.checks) - len(failed)} of {len(report.checks)} checks passed on {report.gpu}")
    lines += [f"  WRONG: {check}" for check in failed]
    return "\n".join(lines)


def main() -> int:
    """Check, time, print and store."""
    parser = option_parser(__doc__)
    parser.add_argument("--attention", default="auto", help="kernel to time: auto, flash, flash3, ...")
    parser.add_argument("--no-timing", action="store_true", help="check only")
    arguments = parser.parse_args()
    if not has_gpu():
        return NO_GPU
    capability = torch.cuda.get_device_capability()
    if reason := refusal(DEVICE, capability, "bf16", arguments.attention):
        print(f"The fused kernels cannot run here: {reason}.", file=sys.stderr)
        return NO_GPU
    import triton

    precisions = [precision for precision in PRECISIONS if not refusal(DEVICE, capability, precision)]
    report = Report(torch.cuda.get_device_name(), capability, torch.__version__, triton.__version__, torch.version.cuda)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Fills newly allocated memory with NaN.
        torch.use_deterministic_algorithms(True, warn_only=True)
        report.checks = [check for precision in precisions for check in run_checks(precision)]
        torch.use_deterministic_algorithms(False)
    if not arguments.no_timing:
        named = arguments.attention != AUTO
        attention = attention_kernel(arguments.attention, DEVICE) if named else fastest_attention(DEVICE, capability)
        time_everything(attention, report, precisions)
    write_report(asdict(report), arguments.out)
    print(table(report))
    return 0 if all(check.passed for check in report.checks) else 1


if __name__ == "__main__":
    sys.exit(main())
