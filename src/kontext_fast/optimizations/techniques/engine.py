"""`engine`: the transformer's forward replaced by our own, with fused operations, in bf16, fp8 or int8.

It reads the transformer's own weights. What is quantized waits in host memory while a GPU runs, and comes back from
there when the acceleration is taken off. It is the forward of one transformer while a request runs; between requests,
and for a copy of the transformer, the forward is the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from kontext_fast.discovery import unknown_name
from kontext_fast.engine.dispatch import (
    AUTO,
    attention_kernels,
    fastest_attention,
    kernel_kind,
    make_ops,
    refusal,
    require_dtype,
    tokens_for_graphs,
)
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.base import Conflict, Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import track_calls
from kontext_fast.optimizations.engine_calls import install, upload_without_waiting
from kontext_fast.optimizations.engine_forward import EngineForward, engine_of, require_engine
from kontext_fast.optimizations.replaced_modules import ReplacedModules, require_untouched
from kontext_fast.records.schema import EMULATED

if TYPE_CHECKING:
    from kontext_fast.engine.graphs.recorded_calls import StepGraphs
    from kontext_fast.engine.sequence_parallel import SequenceParallel
    from kontext_fast.pipeline.device import Machine

__all__ = ["Engine", "engine_of", "require_engine", "save_quantized"]

_PASSES_OF_TRUE_CFG = 2


class Engine(Optimization):
    """Our own forward. In bf16 it rounds where sums are split differently; in fp8 it also rounds every operand of the
    large matrix products to 4 significant bits."""

    name: ClassVar[str] = "engine"
    summary: ClassVar[str] = "our own transformer forward: fused operations, nothing to compile, bf16, fp8 or int8"
    revision: ClassVar[int] = 2
    """2, of 2026-11-27: products of MLPs apply the GELU, in fp8 with scales that are known before; the last block
    computes image tokens only."""
    phase: ClassVar[Phase] = Phase.WEIGHTS
    conflicts: ClassVar[tuple[Conflict, ...]] = (
        Conflict("fuse_qkv", because="the engine fuses projections itself; leave fuse_qkv out"),
        Conflict("first_block_cache", because="the engine runs blocks of its own; use step_reuse instead"),
        Conflict("compile", because="the engine has kernels of its own; leave compile out"),
    )

    precision: Literal["bf16", "fp8", "int8"] = "bf16"
    """`bf16`: the precision the pipeline was loaded in, nothing is quantized; `fp8`: e4m3 inside of the blocks, with
    one scale per token and per output channel, for the MLPs' first products one for each sample that is known before;
    `int8`: scales of tokens and channels in rotated int8, with less than half the error, for Hopper GPUs."""
    full_precision: tuple[int, ...] = ()
    """Steps that are computed in the precision the pipeline was loaded in, by number from 0, or from -1 backwards from
    the last one; for fp8 and int8, whose engine then holds the weights of the blocks in both precisions."""
    attention: str = AUTO
    """The name of a kernel in `engine.attention`, refused where that cannot run. `auto` is the fastest one that the
    machine can run and that rounds only; a plan names which one that is."""
    modulations: Literal["device", "host"] = "device"
    """Where the layers of the blocks' modulations are, 6 GiB at full size, which run once per request: in `host` memory
    they pass through the device one by one. With the preset `low_memory` for cards of 16 GB."""
    originals: Literal["host", "device"] = "host"
    """Where the weights wait that 8 bits replace, 17 GB at full size: in `host` memory, or on the `device`, for a card
    with 48 GB or more, so that applying and reverting copy nothing."""
    gpus: Annotated[int, Field(ge=1)] = 1
    """Of one edit: in a program of that many processes, which `torchrun` or `kontext edit --gpus` starts, each computes
    a share of every step (see `engine.sequence_parallel`). At full size 2, 3, 4, 6 and 8 share the 24 heads evenly."""
    transport: Literal["collectives", "peer_memory"] = "collectives"
    """How several GPUs exchange heads: by collectives of torch.distributed, or written to each other's memory."""
    graphs: Literal["auto", "never"] = "auto"
    """`auto`: a CUDA graph launches the kernels of a step where a table by card and tokens says that a host may be too
    slow to: the same bits, for memory of its own. It is recorded at the second step of a layout. Several GPUs record
    steps of every size."""
    quantized_file: Path | None = Field(default=None, exclude=True)
    """A file that `save_quantized` wrote, read instead of quantizing again. No parameter of a record: the numbers are
    the same either way, since a file made from other weights is refused."""

    @field_validator("attention")
    @classmethod
    def _is_a_kernel(cls, name: str) -> str:
        name = AUTO if name == "default" else name  # its name in earlier versions
        if name not in (known := cls.choices()["attention"]):
            raise ValueError(unknown_name("attention kernel", name, known))
        return name

    @model_validator(mode="after")
    def _precisions_fit(self) -> Engine:
        if self.quantized_file is not None and self.precision == "bf16":
            raise ValueError("quantized_file holds quantized weights; choose precision=fp8 or int8, or leave it out")
        if self.full_precision and self.precision == "bf16":
            raise ValueError("every step has full precision already; choose precision=fp8 or leave full_precision out")
        return self

    def parameters(self) -> dict[str, Any]:
        """Some only where they are not as by default."""
        # Later than the first records.
        added = "full_precision", "modulations", "originals", "gpus", "transport", "graphs"
        unused = {name for name in added if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(mode="json", exclude=unused)

    def full_precision_steps(self, total: int) -> frozenset[int]:
        """The steps, of `total`, that are computed in full precision."""
        return frozenset(step + total if step < 0 else step for step in self.full_precision if -total <= step < total)

    @property
    def effect(self) -> Effect:  # type: ignore[override]
        """Lossy in fp8 and int8, or with a kernel of attention that is."""
        named = self.attention != AUTO
        lossy = self.precision != "bf16" or (named and attention_kernels()[self.attention].effect == "lossy")
        return Effect.LOSSY if lossy else Effect.NUMERIC

    @classmethod
    def choices(cls) -> dict[str, tuple[str, ...]]:
        """The kernels of attention as well."""
        return {**super().choices(), "attention": (AUTO, *attention_kernels())}

    def on_machine(self, machine: Machine) -> Engine:
        """With the kernel of attention that `auto` stands for there."""
        if self.attention != AUTO or machine.device not in ("cpu", "cuda"):
            return self
        return self.model_copy(update={"attention": fastest_attention(machine.device, machine.capability).name})

    def is_what_ran(self, parameters: Mapping[str, Any]) -> bool:
        """`auto` may have been any kernel that rounds only; records of earlier versions call it `default`."""
        ran = {**parameters, "attention": parameters.get("attention", "default")}
        if self.attention == AUTO:
            numeric = {name for name, kernel in attention_kernels().items() if kernel.effect == "numeric"}
            ran["attention"] = AUTO if ran["attention"] in numeric | {"default"} else ran["attention"]
        return ran == self.parameters()

    def label(self, *, architecture_only: bool) -> str | None:
        """How many GPUs make each image."""
        return None if self.gpus == 1 else f"{self.gpus} GPUs together; memory and energy are those of the first one"

    def label_on(self, machine: Machine) -> str | None:
        """That the fused kernels do not run, where they do not."""
        kind = kernel_kind(machine.device, self.precision)
        if kind == "emulated":
            return EMULATED
        if kind == "portable" and machine.device != "cpu":
            return "kernel: portable (plain PyTorch, not the fused kernels)"
        return None

    def refusal(self, machine: Machine) -> str | None:
        """On a GPU fp8 needs compute capability 8.9 and int8 9.0, and both the fused kernels; a CPU emulates fp8."""
        if self.gpus > 1 and self.transport == "peer_memory" and machine.device == "cpu":
            return "GPUs alone can write to each other's memory; use transport=collectives"
        return refusal(machine.device, machine.capability, self.precision, self.attention)

    def precompile_calls(self, pipe: Any) -> Sequence[Callable[[], object]]:
        """The kernels of a step."""
        device = pipe._execution_device
        ops = make_ops(device.type, self.precision, self.attention)
        precisions = {self.precision != "bf16", self.precision != "bf16" and not self.full_precision}
        return [
            call
            for quantize in precisions
            for call in ops.precompile_calls(pipe.transformer, device, quantize=quantize)
        ]

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Replace `forward` on the instance `pipe.transformer` while a request runs.

        The fact `mlp_scales` says by which scales MLPs round in 8 bits, `static` or those of `rows`; `as_stored` is the
        number of matrices whose numbers are those of a float8 file, and `step_graphs` what CUDA graphs of steps do, or
        why there are none (see `engine.graphs.recorded_calls`).

        Raises InvalidInput if the transformer is not plain (LoRA adapters, quantized layers, hooks, float16), and in a
        request if it stopped being so or if that uses ControlNet or IP-Adapter.
        """
        from kontext_fast.engine.quantized_file import QuantizedFile
        from kontext_fast.engine.transformer import EngineTransformer
        from kontext_fast.engine.weights import quantized_copy, require_plain, take_weights

        transformer = pipe.transformer
        require_untouched(transformer)
        require_plain(transformer)
        replaced = ReplacedModules(transformer)
        replaced.require_undisturbed(transformer)
        place = pipe._execution_device
        device = place.type
        require_dtype(device, transformer.dtype)
        parallel = self._parallel(place)
        ops = make_ops(device, self.precision, self.attention)
        stored = None if self.quantized_file is None else QuantizedFile(self.quantized_file, self.precision)
        take = partial(take_weights, device=place, modulations_in_host_memory=self.modulations == "host")
        both = self.precision != "bf16" and (self.full_precision or self.originals == "device")
        unquantized = take(transformer, "bf16", undo) if both else None
        if unquantized is None:
            weights = take(transformer, self.precision, undo, quantizer=stored)
        else:
            weights = quantized_copy(unquantized, self.precision, stored)
        if stored is not None:
            stored.require_made_from(weights)
        calls = track_calls(pipe, undo)
        graphs, of_graphs = self._step_graphs(place, parallel, undo)
        engine = EngineTransformer(weights, ops, unquantized, parallel, graphs)
        ranks = None if parallel is None else parallel.ranks
        forward = EngineForward(transformer, engine, calls, replaced, self.full_precision_steps, ranks)
        if ranks is not None and ranks.size == _PASSES_OF_TRUE_CFG:
            forward.of_passes = EngineTransformer(weights, ops, unquantized)
        if device == "cuda":
            forward.before_first_step = upload_without_waiting(calls, undo)
        install(pipe, forward, calls, undo)
        return {
            "kernel": ops.kernel,
            "attention_kernel": ops.attention_kernel.name,
            "quantized": None if self.precision == "bf16" else "now" if stored is None else "loaded",
            "mlp_scales": engine.mlp_scales,
            "host_bytes": weights.sources.host_bytes,
            "as_stored": weights.sources.as_stored or None,
            "step_graphs": of_graphs,
        }

    def _parallel(self, place: Any) -> SequenceParallel | None:
        """With the other processes of this program, where there are `gpus`. Raises InvalidInput."""
        if self.gpus == 1:
            return None
        import torch

        from kontext_fast.engine.ranks import join
        from kontext_fast.engine.sequence_parallel import SequenceParallel

        # A device without an index is the current one, which a tensor there names.
        return SequenceParallel(join(self.gpus, torch.empty(0, device=place).device), self.transport)

    def _step_graphs(
        self, place: Any, parallel: SequenceParallel | None, undo: ExitStack
    ) -> tuple[StepGraphs | None, Facts | str | None]:
        """What records steps on the device `place`, until `undo` is closed, and what it does; or why there is none."""
        most_tokens = tokens_for_graphs(place)
        if self.graphs == "never" or (place.type == "cpu" and not most_tokens):
            return None, None
        if not most_tokens:
            return None, "off: no row for this card"
        from kontext_fast.engine.graphs import recording
        from kontext_fast.engine.graphs.recorded_calls import StepGraphs

        recorder = recording.recorder_for(place)
        assert recorder is not None
        if parallel is None:
            graphs = StepGraphs(recorder, most_tokens)
        else:  # GPUs that share a step wait for each other wherever a host is late, whatever its size
            graphs = StepGraphs(recorder, None, parallel.ranks.everywhere)
        undo.callback(graphs.clear)
        return graphs, graphs.facts


def save_quantized(pipe: Any, file: str | Path) -> None:
    """Write the quantized weights of `pipe`, accelerated by an engine in fp8 or int8, to `file` for `quantized_file`.

    Raises InvalidInput if there are none or the file cannot be written.
    """
    from kontext_fast.engine.quantized_file import save

    forward = engine_of(pipe.transformer)
    if forward is None:
        raise InvalidInput("This pipeline does not run on the engine; accelerate it with the preset balanced first.")
    save(forward.engine.weights, Path(file))
