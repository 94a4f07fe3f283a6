"""`engine`: the transformer's forward replaced by our own, with fused operations, in bf16 or fp8.

It reads the transformer's own weights. What fp8 replaces waits in host memory while a GPU runs, and comes back from
there when the acceleration is taken off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from kontext_fast.discovery import unknown_name
from kontext_fast.engine.dispatch import (
    DEFAULT_ATTENTION,
    attention_kernels,
    kernel_kind,
    make_ops,
    refusal,
    require_dtype,
)
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.base import Conflict, Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import track_calls
from kontext_fast.records.schema import EMULATED

if TYPE_CHECKING:
    from kontext_fast.optimizations.machine import Machine


class Engine(Optimization):
    """Our own forward. In bf16 it rounds where sums are split differently; in fp8 it also rounds every operand of the
    large matrix products to 4 significant bits."""

    name: ClassVar[str] = "engine"
    summary: ClassVar[str] = "our own transformer forward: fused operations, nothing to compile, bf16 or fp8"
    phase: ClassVar[Phase] = Phase.WEIGHTS
    conflicts: ClassVar[tuple[Conflict, ...]] = (
        Conflict("fuse_qkv", because="the engine fuses projections itself; leave fuse_qkv out"),
        Conflict("first_block_cache", because="the engine runs blocks of its own; use step_reuse instead"),
        Conflict("compile", because="the engine has kernels of its own; leave compile out"),
    )

    precision: Literal["bf16", "fp8"] = "bf16"
    """`bf16`: the precision the pipeline was loaded in, nothing is quantized; `fp8`: e4m3 inside of the blocks, with
    one scale per token and per output channel."""
    attention: str = DEFAULT_ATTENTION
    """The name of a kernel in `engine.attention`, refused where that cannot run; `default` is cuDNN on CUDA and
    PyTorch's own choice on a CPU."""
    quantized_file: Path | None = Field(default=None, exclude=True)
    """A file that `save_quantized` wrote, read instead of quantizing again. No parameter of a record: the numbers are
    the same either way, since a file made from other weights is refused."""

    @field_validator("attention")
    @classmethod
    def _is_a_kernel(cls, name: str) -> str:
        if name not in (known := cls.choices()["attention"]):
            raise ValueError(unknown_name("attention kernel", name, known))
        return name

    @model_validator(mode="after")
    def _file_is_fp8(self) -> Engine:
        if self.quantized_file is not None and self.precision != "fp8":
            raise ValueError("quantized_file holds fp8 weights; choose precision=fp8 or leave it out")
        return self

    @property
    def effect(self) -> Effect:  # type: ignore[override]
        """Lossy in fp8, or with a kernel of attention that is."""
        named = self.attention != DEFAULT_ATTENTION
        lossy = self.precision == "fp8" or (named and attention_kernels()[self.attention].effect == "lossy")
        return Effect.LOSSY if lossy else Effect.NUMERIC

    @classmethod
    def choices(cls) -> dict[str, tuple[str, ...]]:
        """The kernels of attention as well."""
        return {**super().choices(), "attention": (DEFAULT_ATTENTION, *attention_kernels())}

    def label_on(self, machine: Machine) -> str | None:
        """That nothing here is fast, where the fused kernels do not run."""
        kind = kernel_kind(machine.device, self.precision)
        if kind == "emulated":
            return EMULATED
        if kind == "portable" and machine.device != "cpu":
            return "kernel: portable (plain PyTorch, not the fused kernels)"
        return None

    def refusal(self, machine: Machine) -> str | None:
        """fp8 needs compute capability 8.9 and the fused kernels, or a CPU, where it is emulated."""
        return refusal(machine.device, machine.capability, self.precision, self.attention)

    def precompile_calls(self, pipe: Any) -> Sequence[Callable[[], object]]:
        """The kernels of a step."""
        device = pipe._execution_device
        ops = make_ops(device.type, self.precision, self.attention)
        return ops.precompile_calls(pipe.transformer, device, quantize=self.precision == "fp8")

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Replace `forward` on the instance `pipe.transformer` while a request runs.

        Raises InvalidInput if the transformer is not plain (LoRA adapters, quantized layers, hooks, float16), and in a
        request if it stopped being so or if that uses ControlNet or IP-Adapter.
        """
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
            "attention_kernel": ops.attention_kernel.name,
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
