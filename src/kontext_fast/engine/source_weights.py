"""The parameters of a transformer that an engine is made from: whether they are ordinary, what became of them, whether
they are still the same, and the way back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Parameter

from kontext_fast.errors import InvalidInput

_BUFFER_BYTES = 32 * 2**20


class HostMemory:
    """Takes tensors of one GPU. Its two buffers, 64 MiB of pinned memory, live as long as it does."""

    def __init__(self) -> None:
        self._buffers = [torch.empty(_BUFFER_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._filled = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]

    def copy(self, tensor: Tensor) -> Tensor:
        """`tensor` in host memory, contiguous, bit for bit; what its stream was given before is done first."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype)
        source, target = (one.view(-1).view(torch.uint8) for one in (tensor.contiguous(), host))
        pieces = list(zip(*(torch.split(one, _BUFFER_BYTES) for one in (source, target)), strict=True))
        with torch.cuda.device(tensor.device):
            self._fill(0, pieces[0][0])
            for index, (_, waiting) in enumerate(pieces):
                if index + 1 < len(pieces):
                    self._fill(index + 1, pieces[index + 1][0])
                self._filled[index % 2].synchronize()
                waiting.copy_(self._buffers[index % 2][: len(waiting)])
        return host

    def _fill(self, index: int, piece: Tensor) -> None:
        """Let the GPU copy `piece` into its buffer, which was emptied before."""
        self._buffers[index % 2][: len(piece)].copy_(piece, non_blocking=True)
        self._filled[index % 2].record()


_DTYPES = (torch.bfloat16, torch.float32)

_LINEAR_NAMES = frozenset(
    {"x_embedder", "context_embedder", "proj_out", "proj_mlp", "proj", "linear", "to_q", "to_k", "to_v", "to_add_out"}
    | {"add_q_proj", "add_k_proj", "add_v_proj", "linear_1", "linear_2"}
)


def require_plain(transformer: Any) -> None:
    """Raise InvalidInput, saying what to do, unless the engine computes just what `transformer` would."""
    require_no_adapters(transformer)
    for name, layer in transformer.named_modules():
        if hasattr(layer, "weight") and name.split(".")[-1] in _LINEAR_NAMES and type(layer) is not Linear:
            raise InvalidInput(
                f"The engine reads plain linear layers, but {name} is a {type(layer).__name__}; "
                "load the checkpoint without quantization."
            )
        if getattr(layer, "fused_projections", False):
            raise InvalidInput(
                "The transformer's projections are fused already; call pipe.transformer.unfuse_qkv_projections() first."
            )
    _require_ordinary_parameters(transformer)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        _require_known_block(block)


def require_no_adapters(transformer: Any) -> None:
    """Raise InvalidInput if a LoRA adapter is on the transformer that is not part of its weights."""
    # Not `hasattr`: where it fails, as it nearly always does, torch takes microseconds to say so, thousands of times.
    if any("base_layer" in layer._modules for layer in transformer.modules()):
        raise InvalidInput(
            "The transformer has a LoRA adapter that is not fused into its weights; call pipe.fuse_lora() and "
            "pipe.unload_lora_weights(), then accelerate again."
        )


def _require_ordinary_parameters(transformer: Any) -> None:
    kinds = {(type(one), type(one.data), one.dtype, one.device) for one in transformer.parameters()}
    classes = {(parameter, data) for parameter, data, _, _ in kinds}
    if classes != {(Parameter, torch.Tensor)}:
        raise InvalidInput("The transformer's weights are quantized already; load the checkpoint without quantization.")
    if len(kinds) > 1:
        raise InvalidInput(
            "The transformer's weights have more than one precision or device; load the pipeline with one dtype, "
            "then move it with pipe.to(device)."
        )
    (_, _, dtype, _) = kinds.pop()
    if dtype not in _DTYPES:
        raise InvalidInput(
            f"The engine runs in bfloat16 or float32, not {str(dtype).removeprefix('torch.')}; "
            "load the pipeline with dtype=torch.bfloat16."
        )


def _require_known_block(block: Any) -> None:
    processor = type(block.attn.processor).__name__
    if processor != "FluxAttnProcessor":
        raise InvalidInput(
            f"The engine replaces the transformer's own attention, but here it is a {processor}; "
            "unload what put it there (IP-Adapter is one that does), then accelerate again."
        )
    activations = [block.act_mlp] if hasattr(block, "act_mlp") else [block.ff.net[0], block.ff_context.net[0]]
    for activation in activations:
        if getattr(activation, "approximate", None) != "tanh":
            raise InvalidInput("The engine knows the MLP of FLUX (GELU in its tanh form) only; use another preset.")


_SAMPLES = 64
"""Numbers looked at per quantized matrix; whatever rewrites a matrix rewrites nearly all of it."""

_REPAIR = "revert the acceleration, change the pipeline, then accelerate again"


class SourceWeights:
    """The parameters of one transformer; `undo` gives each its own memory on its own device again, bit for bit."""

    def __init__(self, transformer: Any, undo: ExitStack, device: torch.device | None = None) -> None:
        """`device`: where the engine reads them; None: where they are."""
        self._undo = undo
        here: torch.device = transformer.x_embedder.weight.device
        self._foreign = device is not None and device != here
        self.device: torch.device = here if device is None else device
        self._parameters: dict[str, Parameter] = dict(transformer.named_parameters())
        self._addresses: dict[str, int] | None = None
        self._replaced: list[Parameter] = []
        self._sample: Tensor | None = None
        self._host_memory: HostMemory | None = None

    @property
    def host_bytes(self) -> int:
        """Host memory in which replaced parameters of a GPU wait."""
        return sum(one.data.nbytes for one in self._replaced if one.device != self.device)

    def fuse(self, parameters: Sequence[Parameter]) -> Tensor:
        """The parameters one below the other, on the device of the engine; each becomes a view into the result, so
        nothing is held twice there. What came from host memory waits in it."""
        if len(parameters) == 1 and not self._foreign:
            return parameters[0].data
        whole = torch.cat([parameter.data.to(self.device) for parameter in parameters])
        views = torch.split_with_sizes(whole, [len(one) for one in parameters])
        for parameter, view in zip(parameters, views, strict=True):
            if self._foreign:
                self._undo.callback(_set, parameter, parameter.data)
            else:
                self._undo.callback(_own_memory, parameter)
            parameter.data = view
        return whole

    def replaced(self, parameter: Parameter) -> None:
        """Note that numbers computed from `parameter` are used instead; frees its memory on a GPU."""
        self._replaced.append(parameter)
        if parameter.device.type != "cpu":
            self._host_memory = self._host_memory or HostMemory()
            self._undo.callback(_move, parameter, parameter.device)
            parameter.data = self._host_memory.copy(parameter.data)

    def seal(self) -> None:
        """Remember how the parameters are now; call once all are taken."""
        self._host_memory = None
        self._addresses = {name: one.data_ptr() for name, one in self._parameters.items()}
        self._sample = self._sampled()

    def check(self, transformer: Any) -> None:
        """Raise InvalidInput if `transformer` is no longer as it was at `seal`."""
        require_no_adapters(transformer)
        now = dict(transformer.named_parameters())
        addresses = {name: one.data_ptr() for name, one in now.items()}
        if addresses != self._addresses or any(now[name] is not one for name, one in self._parameters.items()):
            raise InvalidInput(f"The transformer was moved, converted or replaced under the engine; {_REPAIR}.")
        sample = self._sampled()
        if sample is not None and self._sample is not None and not torch.equal(sample, self._sample):
            raise InvalidInput(f"The transformer's weights changed after they were quantized; {_REPAIR}.")

    def content_hash(self) -> str:
        """Sha256 of the numbers that were quantized: of names, shapes, dtypes and bits."""
        names = {id(one): name for name, one in self._parameters.items()}
        ordered = sorted((names[id(one)], one) for one in self._replaced)
        with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock, and there are gigabytes of it
            digests = list(pool.map(lambda pair: _digest(*pair), ordered))
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def _sampled(self) -> Tensor | None:
        """[n] a few numbers of every replaced parameter, or None where nothing was replaced."""
        if not self._replaced:
            return None
        flat = [one.data.view(-1) for one in self._replaced]
        # An odd stride visits many rows and columns of a matrix.
        samples = torch.cat([one[:: max(1, len(one) // _SAMPLES) | 1] for one in flat])
        return samples.view(
            torch.int16 if samples.dtype == torch.bfloat16 else torch.int32
        )  # bits: a NaN equals itself


def _set(parameter: Parameter, data: Tensor) -> None:
    parameter.data = data


def _own_memory(parameter: Parameter) -> None:
    parameter.data = parameter.data.clone()


def _move(parameter: Parameter, device: torch.device) -> None:
    parameter.data = parameter.data.to(device)


def _digest(name: str, parameter: Parameter) -> str:
    bits = parameter.data.detach().cpu().contiguous().view(torch.uint8).numpy().data
    return f"{name} {tuple(parameter.shape)} {parameter.dtype} {hashlib.sha256(bits).hexdigest()}"
