"""Compare a step with the same step whose last block computes everything of all tokens: velocities, and milliseconds.

Usage: python -m benchmarks.gpu.last_block_check [--checkpoint random] [--rounds 4] [--out FILE]

`whole`: the last single block as the others are. `outputs`: as the engine runs it, everything but keys and values of
the tokens with an output only. Steps are those of an edit of one image, on its inputs at its first step; the two take
turns, so that heat is the same for both, and a time is that of a step within such a turn.
Exit code 0: done; 1: a velocity is farther from that of `whole` than rounding; 3: no GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.check import NO_GPU, has_gpu, option_parser, write_report
from benchmarks.gpu.latents import relative_error
from benchmarks.gpu.steps_in_turn import first_step, in_turns
from kontext_fast.bench.nvml import NvmlDevice
from kontext_fast.engine.attention.flash3 import installed_interface
from kontext_fast.engine.dispatch import attention_kernel
from kontext_fast.engine.graphs import recording
from kontext_fast.engine.graphs.recorded_calls import StepGraphs
from kontext_fast.engine.transformer import EngineTransformer
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.presets import find_preset
from kontext_fast.optimizations.techniques.engine import require_engine
from kontext_fast.pipeline.load import load

CASES = (
    ("precise", 512, "cudnn", False),
    ("balanced", 512, "flash3_fp8", False),
    ("balanced", 512, "cudnn", True),
    ("balanced", 1024, "flash3", True),
    ("balanced", 1024, "cudnn", True),
    ("faithful", 1024, "flash3", True),
    ("faithful", 1024, "cudnn", True),
)
"""Preset, side, kernel of attention, and whether steps are timed."""
ROUNDING = 0.01
"""Of a velocity, relative: what another algorithm for a product of fewer rows may change in one block."""


def main() -> int:
    """Load, compare, time, print and store."""
    parser = option_parser(__doc__)
    parser.add_argument("--checkpoint", default="random")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    if not has_gpu():
        return NO_GPU
    pipe = load(arguments.checkpoint).pipe
    pipe.set_progress_bar_config(disable=True)
    report: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cases": []}
    for preset in dict.fromkeys(preset for preset, *_ in CASES):
        with accelerate(pipe, find_preset(preset), quiet=True):
            engine = require_engine(pipe.transformer, "engine").engine
            for _, size, attention, timed in (case for case in CASES if case[0] == preset):
                if attention.startswith("flash3") and installed_interface() is None:
                    print(f"{preset} with {attention}: FlashAttention-3 is not installed", flush=True)
                    continue
                with _attention(engine, attention):
                    result = compared(pipe, engine, size, arguments.rounds if timed else 0)
                report["cases"].append({"preset": preset, "size": size, "attention": attention, **result})
                print(report["cases"][-1], flush=True)
                write_report(report, arguments.out)
    errors = [error for case in report["cases"] for error in case["errors"].values()]
    return 0 if all(error <= ROUNDING for error in errors) else 1


def compared(pipe: Any, engine: Any, size: int, rounds: int) -> dict[str, Any]:
    """How far each arm's velocity is from that of `whole`, and its median milliseconds of a step."""
    own, engine.graphs = engine.graphs, None
    errors, steps = {}, {}
    for batch in (2, 1):
        arguments = first_step(pipe, engine, size, batch)
        with ARMS["whole"]():
            expected = engine.step(*arguments)
        for arm, changed in ARMS.items():
            with changed():
                errors[f"{arm}, {batch} at once"] = relative_error(engine.step(*arguments), expected)
    recorder = recording.recorder_for(pipe._execution_device)
    assert recorder is not None
    for arm in ARMS if rounds else ():
        # As the engine does: steps of small sizes are one graph.
        steps[arm] = _step(engine, StepGraphs(recorder, most_tokens=4608), arm, arguments)
        for _ in range(3):
            steps[arm]()
    measured = in_turns(steps, rounds, NvmlDevice.of(pipe._execution_device))
    engine.graphs = own
    return {"errors": errors, **measured}


@contextmanager
def _attention(engine: Any, name: str) -> Iterator[None]:
    """With another kernel of attention; a quantized one also needs the scales of its weights."""
    from kontext_fast.engine.static_scales import AttentionScales

    ops, kernel = engine.ops, attention_kernel(name, "cuda")
    before = ops.attention_kernel, engine._attention_scales
    ops.attention_kernel = kernel
    engine._attention_scales = AttentionScales(engine.weights) if kernel.quantized else None
    try:
        yield
    finally:
        ops.attention_kernel, engine._attention_scales = before


@contextmanager
def _whole() -> Iterator[None]:
    """The last block computes everything of all tokens."""
    single = EngineTransformer._single

    def of_all(self: Any, weights: Any, joint: Any, rope: Any, stream: Any, modulation: Any, _outputs: Any) -> None:
        single(self, weights, joint, rope, stream, modulation)

    EngineTransformer._single = of_all  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        EngineTransformer._single = single  # type: ignore[method-assign]


ARMS: dict[str, Callable[[], AbstractContextManager[None]]] = {"whole": _whole, "outputs": nullcontext}


def _step(engine: Any, graphs: StepGraphs, arm: str, arguments: tuple[Any, ...]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        engine.graphs = graphs
        with ARMS[arm]():
            result: Tensor = engine.step(*arguments)
        return result

    return run


if __name__ == "__main__":
    sys.exit(main())
