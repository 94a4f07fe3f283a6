"""`torchao_float8`: every linear layer of the transformer in float8, weights and activations, through torchao."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase

if TYPE_CHECKING:
    from kontext_fast.pipeline.device import Machine


class TorchaoFloat8(Optimization):
    """Weights are quantized once, activations at each call; the original weights are not kept."""

    name: ClassVar[str] = "torchao_float8"
    summary: ClassVar[str] = "linear layers in float8 (torchao, dynamic activations); cannot be reverted"
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.WEIGHTS
    extra: ClassVar[tuple[str, str] | None] = ("torchao", "peers")

    granularity: Literal["row", "tensor"] = "row"
    """One scale per row of a matrix, or per tensor."""
    coordinate_descent: bool = True
    """Whether inductor tunes kernels by coordinate descent, which torchao turns on for the whole process."""

    def hardware_refusal(self, machine: Machine) -> str | None:
        """torchao's kernels need compute capability 8.9."""
        if machine.device == "cuda" and machine.capability is not None and machine.capability >= (8, 9):
            return None
        return f"{self.name} needs an NVIDIA GPU of compute capability 8.9 or later; run it on one"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Quantize `pipe.transformer`. It cannot be reverted: closing `undo` raises InvalidInput."""
        from torch._inductor import config
        from torch.nn import Linear
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, PerTensor, quantize_

        granularity = PerRow() if self.granularity == "row" else PerTensor()
        cannot_revert(self.name, undo)
        # This also changes settings of inductor for the whole process, which is part of what torchao recommends.
        quantize_(pipe.transformer, Float8DynamicActivationFloat8WeightConfig(granularity=granularity))
        config.coordinate_descent_tuning = self.coordinate_descent
        return {"layers": sum(isinstance(module, Linear) for module in pipe.transformer.modules())}


def cannot_revert(name: str, undo: ExitStack) -> None:
    """Have `undo` raise InvalidInput when the technique `name` is reverted, which it does not allow.

    When `undo` closes because of an error, that error propagates instead.
    """

    def stop(kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> bool:
        if kind is None:
            raise InvalidInput(f"{name} cannot be reverted; load the checkpoint again.")
        return False

    undo.push(stop)
