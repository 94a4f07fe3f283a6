"""The roofline of a preset: the time of one step by kernel, against the best rates that this machine reaches.

The ceilings (matrix products, attention, copies) are each measured on one large problem. The floor of a step is its
work divided by them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from kontext_fast.engine.flops import Dimensions, Tokens, step_work
from kontext_fast.records.schema import StepKind

if TYPE_CHECKING:
    from kontext_fast.engine.ops import Precision

_REPEATS = 7


@dataclass(frozen=True)
class Ceilings:
    """The best rates of a machine, per second."""

    linear_flop: float
    attention_flop: float
    copy_bytes: float
    """Read and written, by an element-wise kernel: copy engines are slower."""


def measure_ceilings(device: Any, dtype: Any, *, head_dim: int, precision: Precision) -> Ceilings:
    """The best rates of `device` in `dtype`, with products in `precision`, which the device must have."""
    import torch

    large = device.type == "cuda"
    rows, width = (8192, 12288) if large else (512, 768)
    tokens, heads = (8192, 24) if large else (512, 4)
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Any:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    query = draw(1, heads, tokens, head_dim)
    source = torch.ones(2**28 if large else 2**22, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    with torch.no_grad():
        return Ceilings(
            linear_flop=2.0 * rows * width * width / _seconds(device, _product(draw, rows, width, precision)),
            attention_flop=4.0 * heads * tokens**2 * head_dim / _seconds(device, lambda: _attend(query)),
            copy_bytes=2.0 * source.nbytes / _seconds(device, lambda: torch.neg(source, out=target)),
        )


def _product(draw: Callable[..., Any], rows: int, width: int, precision: Precision) -> Callable[[], Any]:
    import torch

    x, weight = draw(1, rows, width), draw(width, width)
    if precision == "bf16":
        return lambda: torch.nn.functional.linear(x, weight)
    from kontext_fast.engine.dispatch import make_ops
    from kontext_fast.engine.ops import Linear
    from kontext_fast.engine.weights import ROUNDINGS

    ops, quantized = make_ops(x.device.type, precision), ROUNDINGS[precision]
    operand, layer = quantized(x), Linear(quantized(weight), None)
    return lambda: ops.linear(operand, layer)


def _attend(query: Any) -> Any:
    import torch

    from kontext_fast.engine.dispatch import fastest_attention

    tokens_first = query.transpose(1, 2)
    capability = torch.cuda.get_device_capability(query.device) if query.is_cuda else None
    return fastest_attention(query.device.type, capability).run(tokens_first, tokens_first, tokens_first)


def _seconds(device: Any, call: Callable[[], Any]) -> float:
    """The median of one call, after warm-up."""
    import torch

    samples = []
    for _ in range(_REPEATS + 2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        samples.append(time.perf_counter() - start)
    return median(samples[2:])


Category = Literal["linear", "attention", "element-wise"]

_ATTENTION = ("flash", "fmha", "sdpa", "scaled_dot_product", "attention", "attn")
_LINEAR = ("gemm", "nvjet", "cublas", "cutlass", "xmma", "splitk", "::addmm", "::mm", "::bmm", "linear", "scaled_mm")


@cache
def _our_functions() -> dict[str, str]:
    """The kernel that each function belongs to, by the name under which a profiler lists the function; no products."""
    from kontext_fast.engine.kernels.registry import kernels

    ours = [kernel for kernel in kernels().values() if not kernel.is_product]
    return {function.__name__: kernel.name for kernel in ours for function in kernel.functions}


@dataclass(frozen=True)
class KernelTime:
    """All calls of one kernel (on a CPU: of one operator of PyTorch) in a step."""

    name: str
    category: Category
    calls: int
    seconds: float
    floor_s: float | None
    """None if its own work is not known; it is then part of the floor of its category."""


@dataclass(frozen=True)
class StepRoofline:
    """One step of one kind."""

    kind: StepKind
    step: int
    """0-based index of the profiled step."""
    kernels: tuple[KernelTime, ...]
    """The longest first."""
    floors_s: dict[Category, float]
    idle_s: float
    """Time between the first and the last kernel in which no kernel ran; on a CPU, time outside of operators."""

    @property
    def seconds(self) -> float:
        return sum(kernel.seconds for kernel in self.kernels) + self.idle_s

    @property
    def floor_s(self) -> float:
        return sum(self.floors_s.values())

    def seconds_of(self, category: Category) -> float:
        return sum(kernel.seconds for kernel in self.kernels if kernel.category == category)


@dataclass(frozen=True)
class Roofline:
    """The profiled steps of one preset on one machine."""

    preset: str
    device: str
    """The name of the GPU, or `cpu`."""
    tokens: Tokens
    ceilings: Ceilings
    steps: tuple[StepRoofline, ...]
    not_seen: tuple[StepKind, ...]
    """Kinds that only step 0 had, which is not profiled."""


def roofline(checkpoint: str, preset: str, *, device: str | None, size: tuple[int, int] | None, steps: int) -> Roofline:
    """The roofline of `preset`, measured in a process of its own. Raises what loading and applying raise."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, checkpoint, preset, device, size, steps).result()


def _measure(checkpoint: str, preset: str, device: str | None, size: tuple[int, int] | None, steps: int) -> Roofline:
    import torch

    from kontext_fast.bench.peers import find_preset
    from kontext_fast.datasets.shapes import held_out
    from kontext_fast.optimizations.acceleration import apply_plan
    from kontext_fast.optimizations.presets import resolve
    from kontext_fast.pipeline.device import Machine, choose_device
    from kontext_fast.pipeline.edit import EditRequest, edit
    from kontext_fast.pipeline.load import kind_of, load

    chosen = choose_device(device)
    random_weights = kind_of(checkpoint).random_weights
    plan = resolve(find_preset(preset), Machine.detect(chosen), architecture_only=random_weights)
    pipe = load(checkpoint, device=chosen, in_host_memory=plan.in_host_memory).pipe
    precisions = {getattr(optimization, "precision", "bf16") for optimization in plan.optimizations}
    precision: Precision = next((name for name in ("fp8", "int8") if name in precisions), "bf16")
    with apply_plan(plan, pipe, chosen):
        (item,) = held_out(1)
        image = item.render(max(size or (pipe.vae.config.sample_size,)))
        request = EditRequest(item.instruction, image, steps=steps, seed=0, size=size)
        result = edit(pipe, request)
        tokens = Tokens(result.size.text_tokens, result.size.image_tokens, result.size.reference_tokens)
        shape, dtype = Dimensions.of(pipe.transformer), pipe.vae.dtype
        on_gpu = chosen.type == "cuda"
        ceilings = measure_ceilings(chosen, dtype, head_dim=shape.head_dim, precision=precision if on_gpu else "bf16")
        profiled = {kind: index for index, kind in enumerate(result.step_kinds) if index}
        step_rooflines = tuple(
            _step(kind, index, list(_profiled(pipe, request, index, chosen)), ceilings, shape, tokens,
                  precision=precision, itemsize=dtype.itemsize)
            for kind, index in profiled.items()
        )  # fmt: skip
    missing = tuple(kind for kind in dict.fromkeys(result.step_kinds) if kind not in profiled)
    name = torch.cuda.get_device_name(chosen) if on_gpu else "cpu"
    return Roofline(preset, name, tokens, ceilings, step_rooflines, missing)


@dataclass(frozen=True)
class _Event:
    name: str
    start_us: float
    end_us: float
    busy_us: float


def _profiled(pipe: Any, request: Any, step: int, device: Any) -> Iterator[_Event]:
    """Every kernel (on a CPU: operator) that ran on `device` in one step of an edit."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from kontext_fast.pipeline.edit import edit

    on_gpu = device.type == "cuda"
    profiler = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])

    def between(done: int, _total: int) -> None:
        if done in (step, step + 1):
            if on_gpu:
                torch.cuda.synchronize(device)
            (profiler.start if done == step else profiler.stop)()

    edit(pipe, request, on_step=between)
    for event in profiler.events():  # type: ignore[no-untyped-call]
        of_device = (event.device_type.name == "CUDA") == on_gpu
        if not of_device or event.is_user_annotation or not (on_gpu or event.name.startswith("aten::")):
            continue
        busy = event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total
        yield _Event(event.name, event.time_range.start, event.time_range.end, busy)


def _step(
    kind: StepKind,
    step: int,
    events: list[_Event],
    ceilings: Ceilings,
    dimensions: Dimensions,
    tokens: Tokens,
    *,
    precision: Precision,
    itemsize: int,
) -> StepRoofline:
    from kontext_fast.engine.kernels.registry import step_bytes

    moved = step_bytes(dimensions, tokens, kind, precision=precision, itemsize=itemsize)
    work = step_work(dimensions, tokens, kind)
    by_name: dict[str, list[float]] = defaultdict(list)
    for event in events:
        by_name[event.name].append(event.busy_us / 1e6)
    kernels = [
        KernelTime(name, category_of(name), len(times), sum(times), _own_floor(name, moved, ceilings))
        for name, times in by_name.items()
    ]
    kernels.sort(key=lambda kernel: -kernel.seconds)
    busy = sum(kernel.seconds for kernel in kernels)
    span = (max(event.end_us for event in events) - min(event.start_us for event in events)) / 1e6 if events else 0.0
    floors: dict[Category, float] = {
        "linear": work.linear / ceilings.linear_flop,
        "attention": work.attention / ceilings.attention_flop,
        "element-wise": sum(moved.values()) / ceilings.copy_bytes,
    }
    return StepRoofline(kind, step, tuple(kernels), floors, max(0.0, span - busy))


def category_of(name: str) -> Category:
    """The category of a kernel or operator, by its name."""
    if name in _our_functions():
        return "element-wise"
    lower = name.lower()
    # Attention first: its kernels consist of parts of matrix products and have their names.
    if any(word in lower for word in _ATTENTION):
        return "attention"
    return "linear" if any(word in lower for word in _LINEAR) else "element-wise"


def _own_floor(name: str, moved: dict[str, float], ceilings: Ceilings) -> float | None:
    kernel = _our_functions().get(name)
    return None if kernel is None else moved.get(kernel, 0.0) / ceilings.copy_bytes
