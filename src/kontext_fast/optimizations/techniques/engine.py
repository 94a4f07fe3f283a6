"""`engine`: the transformer's forward replaced by our own, with fused operations, in bf16 or fp8.

It reads the transformer's own weights. What fp8 replaces waits in host memory while a GPU runs, and comes back from
there when the acceleration is taken off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.base import Conflict, Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import track_calls
from kontext_fast.records.schema import EMULATED

if TYPE_CHECKING:
    from kontext_fast.optimizations.machine import Machine


class _ByChoice:
    """The effect of the defaults on the class, of what was chosen on an instance."""

    def __get__(self, one: Engine | None, owner: type[Engine]) -> Effect:
        rounds = one is not None and (one.precision == "fp8" or one.attention == "flash3_fp8")
        return Effect.LOSSY if rounds else Effect.NUMERIC


class Engine(Optimization):
    """Our own forward. In bf16 it rounds where sums are split differently; in fp8 it also rounds every operand of the
    large matrix products to 4 significant bits."""

    name: ClassVar[str] = "engine"
    summary: ClassVar[str] = "our own transformer forward: fused operations, nothing to compile, bf16 or fp8"
    effect: ClassVar[Effect] = _ByChoice()  # type: ignore[assignment]
    phase: ClassVar[Phase] = Phase.WEIGHTS
    conflicts: ClassVar[tuple[Conflict, ...]] = (
        Conflict("fuse_qkv", because="the engine fuses projections itself; leave fuse_qkv out"),
        Conflict("first_block_cache", because="the engine runs blocks of its own; use step_reuse instead"),
        Conflict("compile", because="the engine has kernels of its own; leave compile out"),
    )

    precision: Literal["bf16", "fp8"] = "bf16"
    """`bf16`: the precision the pipeline was loaded in, nothing is quantized; `fp8`: e4m3 inside of the blocks, with
    one scale per token and per output channel."""
    attention: Literal["default", "cudnn", "flash", "efficient", "math", "flash3", "flash3_fp8"] = "default"
    """`default` is cuDNN on CUDA and PyTorch's own choice on a CPU; `flash3` is FlashAttention-3 of the package
    `fa3-fwd`, refused where that is missing; `flash3_fp8` is the same in e4m3, with one scale per sample and head; the
    others name one of PyTorch's kernels."""
    quantized_file: Path | None = Field(default=None, exclude=True)
    """A file that `save_quantized` wrote, read instead of quantizing again. No parameter of a record: the numbers are
    the same either way, since a file made from other weights is refused."""

    @model_validator(mode="after")
    def _file_is_fp8(self) -> Engine:
        if self.quantized_file is not None and self.precision != "fp8":
            raise ValueError("quantized_file holds fp8 weights; choose precision=fp8 or leave it out")
        return self

    def label_on(self, machine: Machine) -> str | None:
        """That nothing here is fast, where the fused kernels do not run."""
        from kontext_fast.engine.dispatch import kernel_kind

        kind = kernel_kind(machine.device, self.precision)
        if kind == "emulated":
            return EMULATED
        if kind == "portable" and machine.device != "cpu":
            return "kernel: portable (plain PyTorch, not the fused kernels)"
        return None

    def refusal(self, machine: Machine) -> str | None:
        """fp8 needs compute capability 8.9 and the fused kernels, or a CPU, where it is emulated."""
        from kontext_fast.engine.dispatch import refusal

        return refusal(machine.device, machine.capability, self.precision, self.attention)

    def first_launches(self, pipe: Any) -> Sequence[Callable[[], object]]:
        """The kernels of a step."""
        from kontext_fast.engine.dimensions import Dimensions
        from kontext_fast.engine.dispatch import make_ops

        place, transformer = pipe._execution_device, pipe.transformer
        ops = make_ops(place.type, self.precision, self.attention)
        return ops.first_launches(
            Dimensions.of(transformer), transformer.dtype, place, quantize=self.precision == "fp8"
        )

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Replace `forward` on the instance `pipe.transformer` while a request runs.

        Raises InvalidInput if the transformer is not plain (LoRA adapters, quantized layers, hooks, float16), and in a
        request if it stopped being so or if that uses ControlNet or IP-Adapter.
        """
        from kontext_fast.engine.attention import resolve_kernel
        from kontext_fast.engine.dispatch import make_ops, require_dtype
        from kontext_fast.engine.quantized_file import QuantizedFile
        from kontext_fast.engine.transformer import EngineTransformer
        from kontext_fast.engine.weights import take_weights
        from kontext_fast.optimizations.techniques.engine_forward import install

        transformer = pipe.transformer
        _require_untouched(transformer)
        place = pipe._execution_device
        device = place.type
        require_dtype(device, transformer.dtype)
        ops = make_ops(device, self.precision, self.attention)
        stored = None if self.quantized_file is None else QuantizedFile(self.quantized_file)
        weights = take_weights(transformer, self.precision, undo, device=place, quantizer=stored)
        if stored is not None:
            stored.require_made_from(weights)
        install(transformer, EngineTransformer(weights, ops), track_calls(pipe, undo), undo)
        return {
            "kernel": ops.kernel,
            "attention_kernel": resolve_kernel(self.attention, device),
            "quantized": None if self.precision == "bf16" else "now" if stored is None else "loaded",
            "host_bytes": weights.sources.host_bytes,
        }


def _require_untouched(transformer: Any) -> None:
    if "forward" in vars(transformer):
        raise InvalidInput(
            "Something already replaced the transformer's forward (offloading, another cache or hook); "
            "take it off, e.g. with pipe.remove_all_hooks(), then accelerate again."
        )
    for part in transformer.modules():
        # diffusers leaves an empty registry of hooks behind after every request.
        registry = vars(part).get("_diffusers_hook")
        if "_hf_hook" in vars(part) or (registry is not None and registry.hooks):
            raise InvalidInput("The engine runs no hooks of the transformer; take offloading or caches off first.")
        if part._compiled_call_impl is not None:
            raise InvalidInput("The transformer is compiled already; load it again without torch.compile.")


def save_quantized(pipe: Any, file: str | Path) -> None:
    """Write the fp8 weights of `pipe`, accelerated by an engine in fp8, to `file` for `quantized_file`.

    Raises InvalidInput if there are none or the file cannot be written.
    """
    from kontext_fast.engine.quantized_file import save
    from kontext_fast.optimizations.techniques.engine_forward import engine_of

    forward = engine_of(pipe.transformer)
    if forward is None:
        raise InvalidInput("This pipeline does not run on the engine; accelerate it with a preset in fp8 first.")
    save(forward.engine.weights, Path(file))
