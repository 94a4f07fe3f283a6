"""Compare steps whose passes are merged with the same passes one by one: every bit, and milliseconds at the power cap.

Usage: python -m benchmarks.gpu.merged_check [--checkpoint random] [--rounds 4] [--out FILE]

`add`: a gated residual and the norm after it are one pass. `value`: single blocks attend to the value where the product
left it. Steps are those of an edit of one image, on its inputs at its first step; the arms take turns, so
that heat is the same for all, and a time is that of a step within such a turn.
Exit code 0: done; 1: a bit differs; 3: no GPU.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.check import NO_GPU, has_gpu, option_parser, write_report
from benchmarks.gpu.latents import latents_of
from kontext_fast.bench.nvml import NvmlDevice
from kontext_fast.datasets.shapes import held_out
from kontext_fast.engine.attention.flash3 import installed_interface
from kontext_fast.engine.dispatch import attention_kernel
from kontext_fast.engine.graphs import recording
from kontext_fast.engine.graphs.recorded_calls import StepGraphs
from kontext_fast.engine.ops import JointQKV, PortableOps, QKNorm, Rope
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.presets import find_preset
from kontext_fast.optimizations.techniques.engine import require_engine
from kontext_fast.pipeline.load import load

MERGED = {"add": "add_norm_modulate", "value": "write_all_qkv"}
"""The operations that arms have, by name; without them the passes run one by one."""
ARMS = ((), ("add",), ("value",), ("add", "value"))
CASES = (
    ("balanced", 1024, "cudnn", True),
    ("balanced", 1024, "flash3", True),
    ("balanced", 512, "cudnn", True),
    ("faithful", 1024, "cudnn", True),
    ("faithful", 512, "flash3", False),
    ("precise", 512, "cudnn", False),
)
"""Preset, side, kernel of attention, and whether steps are timed."""
TURN_S = 1.2


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
                if attention == "flash3" and installed_interface() is None:
                    print(f"{preset} with {attention}: FlashAttention-3 is not installed", flush=True)
                    continue
                result = compared(pipe, engine, size, attention, arguments.rounds if timed else 0)
                report["cases"].append({"preset": preset, "size": size, "attention": attention, **result})
                print(report["cases"][-1], flush=True)
                write_report(report, arguments.out)
    return 0 if all(all(case["equal"].values()) for case in report["cases"]) else 1


def compared(pipe: Any, engine: Any, size: int, attention: str, rounds: int) -> dict[str, Any]:
    """Whether each arm has the bits of the first, and its median milliseconds of a step."""
    engine.ops.attention_kernel = attention_kernel(attention, "cuda")
    own, engine.graphs = engine.graphs, None
    equal, steps = {}, {}
    for batch in (2, 1):
        arguments = _first_step(pipe, engine, size, batch)
        expected = None
        for arm in ARMS:
            with _only(engine.ops, arm):
                velocity = engine.step(*arguments)
            expected = velocity if expected is None else expected
            equal[f"{'+'.join(arm) or 'apart'}, {batch} at once"] = torch.equal(velocity, expected)
    recorder = recording.recorder_for(pipe._execution_device)
    assert recorder is not None
    card = NvmlDevice.of(pipe._execution_device)
    turns: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for arm in ARMS if rounds else ():
        # As the engine does: steps of small sizes are one graph.
        steps[arm] = _step(engine, StepGraphs(recorder, most_tokens=4608), arm, arguments)
        for _ in range(3):
            steps[arm]()
    for turn in range(rounds):
        for arm in ARMS if turn % 2 else ARMS[::-1]:
            turns["+".join(arm) or "apart"].append(_turn(steps[arm], card))
    engine.graphs = own
    ms = {name: statistics.median(turn["ms"] for turn in of_arm) for name, of_arm in turns.items()}
    return {"equal": equal, "ms": ms, "turns": turns}


def _first_step(pipe: Any, engine: Any, size: int, batch: int) -> tuple[Any, ...]:
    """The arguments of the engine's first step of an edit."""
    kept: list[tuple[Any, ...]] = []
    step = type(engine).step

    def keeping(self: Any, *arguments: Any, **named: Any) -> Tensor:
        kept.append(arguments)
        result: Tensor = step(self, *arguments, **named)
        return result

    type(engine).step = keeping
    try:
        items = held_out(batch)
        latents_of(pipe, [item.render(size) for item in items], [item.instruction for item in items], steps=2)
    finally:
        type(engine).step = step
    return kept[0]


@contextmanager
def _only(ops: Any, arm: tuple[str, ...]) -> Iterator[None]:
    """The operations that are not of the arm are two passes, as in plain PyTorch."""

    def apart(stream: Tensor, gate: Tensor, update: Tensor, shift: Tensor, scale: Tensor, *, quantize: bool) -> Any:
        return PortableOps.add_norm_modulate(ops, stream, gate, update, shift, scale, quantize=quantize)

    def copied(qkv: Tensor, norm: QKNorm, rope: Rope, joint: JointQKV) -> JointQKV:
        return PortableOps.write_all_qkv(ops, qkv, norm, rope, joint)

    others: dict[str, Callable[..., Any]] = {"add": apart, "value": copied}
    replaced = {MERGED[name]: function for name, function in others.items() if name not in arm}
    vars(ops).update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            del vars(ops)[name]


def _step(engine: Any, graphs: StepGraphs, arm: tuple[str, ...], arguments: tuple[Any, ...]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        engine.graphs = graphs
        with _only(engine.ops, arm):
            result: Tensor = engine.step(*arguments)
        return result

    return run


def _turn(step: Callable[[], Tensor], card: NvmlDevice | None) -> dict[str, Any]:
    """Milliseconds of a step, repeated for `TURN_S`, and what the card reports near the end."""
    begin, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    begin.record()
    step()
    middle.record()
    middle.synchronize()
    count = max(3, round(1e3 * TURN_S / begin.elapsed_time(middle)))
    middle.record()
    for _ in range(count):
        step()
    end.record()
    readings = {} if card is None else {"power_w": card.power_w(), "clock_mhz": card.clock_sm_mhz()}
    end.synchronize()
    return {"ms": middle.elapsed_time(end) / count, **readings}


if __name__ == "__main__":
    sys.exit(main())
