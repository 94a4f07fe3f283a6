"""The operations of one step of a 1024x1024 edit at real sizes, on random inputs: what `kernel_check.py` times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kontext_fast.engine.dimensions import FLUX_KONTEXT_DEV
from kontext_fast.engine.fp8 import quantize
from kontext_fast.engine.ops import JointQKV, Linear, Ops, QKNorm, Rope

DEVICE = "cuda"
W, M = FLUX_KONTEXT_DEV.width, FLUX_KONTEXT_DEV.mlp_width
HEADS, CHANNELS = FLUX_KONTEXT_DEV.heads, FLUX_KONTEXT_DEV.head_dim


@dataclass(frozen=True)
class Draw:
    """Random inputs: the same numbers in either dtype, and views whose surroundings are NaN."""

    dtype: torch.dtype
    generator: torch.Generator

    def __call__(self, *shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=self.generator, device=DEVICE)
        numbers[..., :: max(7, shape[-1] // 3)] *= 30
        return numbers.bfloat16().to(self.dtype)

    def window(self, batch: int, rows: int, width: int) -> Tensor:
        """[batch, rows, width], a view into a larger buffer."""
        whole = torch.full((batch, rows + 5, width + 64), torch.nan, dtype=self.dtype, device=DEVICE)
        view = whole[:, 3 : 3 + rows, 32 : 32 + width]
        view.copy_(self(batch, rows, width))
        return view


@dataclass(frozen=True)
class Stage:
    """One operation of a step at its real size; `moved` are the fewest bytes, `flop` its operations."""

    name: str
    times: int
    """Per step."""
    moved: float
    flop: float
    inputs: Callable[[], Callable[[], object]]
    """Draws inputs and gives the call on them."""


def stages(ops: Ops, text: int, image: int, rounds: bool) -> Iterator[Stage]:
    """Of a step with so many text and image tokens, those of the reference included."""
    draw = Draw(torch.bfloat16, torch.Generator(DEVICE).manual_seed(0))
    total, item = text + image, 1 if rounds else 2
    doubles, singles = FLUX_KONTEXT_DEV.double_blocks, FLUX_KONTEXT_DEV.single_blocks
    norm = QKNorm(draw(CHANNELS), draw(CHANNELS), 1e-6)
    joint = JointQKV(*(draw(1, total, HEADS, CHANNELS) for _ in range(3)))
    modulation = draw(1, 3 * W).chunk(3, -1)

    def elementwise(rows: int, where: str, times: int) -> Iterator[Stage]:
        angles = draw(rows, CHANNELS // 2).float()
        rope = Rope(angles.cos(), angles.sin())

        def write() -> Callable[[], object]:
            qkv = draw(1, rows, 3 * W)
            return lambda: ops.write_qkv(qkv, norm, rope, joint, 0)

        def modulate() -> Callable[[], object]:
            x = draw(1, rows, W)
            return lambda: ops.norm_modulate(x, modulation[0], modulation[1], quantize=rounds)

        def add() -> Callable[[], object]:
            stream, update = draw(1, rows, W), draw(1, rows, W)
            return lambda: ops.add_gated(stream, modulation[2], update)

        often = times if where == "single" else 2 * times
        yield Stage(f"norm_modulate {where}", often, rows * W * (2 + item), 0, modulate)
        yield Stage(f"write_qkv {where}", times, rows * W * 12, 0, write)
        yield Stage(f"add_gated {where}", often, rows * W * 6, 0, add)

    def activation(rows: int, where: str, times: int) -> Iterator[Stage]:
        def alone() -> Callable[[], object]:
            x = draw(1, rows, M)
            return lambda: ops.gelu(x, quantize=rounds)

        def beside() -> Callable[[], object]:
            attended, hidden = draw(1, rows, W), draw(1, rows, 3 * W + M)[..., 3 * W :]
            return lambda: ops.join_gelu(attended, hidden, quantize=rounds)

        if where == "single":
            yield Stage("join_gelu single", times, rows * (W + M) * (2 + item), 0, beside)
        else:
            yield Stage(f"gelu {where}", times, rows * M * (2 + item), 0, alone)

    def products(rows: int, where: str, times: int, widths: list[tuple[int, int]]) -> Iterator[Stage]:
        for shared, out in widths:

            def product(shared: int = shared, out: int = out) -> Callable[[], object]:
                x, weight, bias = draw(1, rows, shared), draw(out, shared), draw(out)
                operand = quantize(x) if rounds else x
                layer = Linear(quantize(weight) if rounds else weight, bias)
                return lambda: ops.linear(operand, layer)

            yield Stage(f"linear {shared}x{out} {where}", times, 0, 2 * rows * shared * out, product)

    for rows, where in ((image, "image"), (text, "text")):
        yield from elementwise(rows, where, doubles)
        yield from activation(rows, where, doubles)
        if rounds:

            def prepare(rows: int = rows) -> Callable[[], object]:
                x = draw(1, rows, W)
                return lambda: ops.prepare(x, quantize=True)

            yield Stage(f"prepare {where}", doubles, rows * W * 3, 0, prepare)
        yield from products(rows, where, doubles, [(W, 3 * W), (W, W), (W, M), (M, W)])
    yield from elementwise(total, "single", singles)
    yield from activation(total, "single", singles)
    yield from products(total, "single", singles, [(W, 3 * W + M), (W + M, W)])

    def attend() -> Callable[[], object]:
        query, key, value = (draw(1, total, HEADS, CHANNELS) for _ in range(3))
        return lambda: ops.attention(query, key, value)

    yield Stage("attention", doubles + singles, 0, 4 * total * total * W, attend)
