"""Calls that are recorded once and repeated: static buffers in, a recording, copies of its outputs.

A recording reads and writes at fixed addresses. All recordings of one recorder share memory for what lies between
inputs and outputs, so they run one after the other, whatever threads and streams they are called from.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from kontext_fast.engine.graphs.op_tape import OpTape


class Recording(Protocol):
    """A call that can be repeated on what is now in the tensors that it read."""

    outputs: tuple[Tensor, ...]
    """Written by every replay."""

    def replay(self) -> None:
        """Run it again, on the current stream."""


class Recorder(Protocol):
    """Makes recordings, which share memory."""

    @property
    def memory_bytes(self) -> int:
        """What all recordings hold together, their buffers for inputs not included."""

    def runs_on(self, device: torch.device) -> bool:
        """Whether it records what runs on `device`."""

    def record(self, call: Callable[[], Sequence[Tensor]]) -> Recording:
        """A recording of `call`, not yet replayed; its outputs hold nothing yet.

        Raises RuntimeError if it cannot be recorded.
        """

    def turn(self) -> AbstractContextManager[None]:
        """A context in which no other recording of this recorder runs."""


def recorder_for(device: torch.device) -> Recorder | None:
    """The recorder of a device, or None where there is none."""
    return CudaGraphs(device) if device.type == "cuda" else None


class CudaGraphs:
    """CUDA graphs whose memory is one pool. It lives as long as they do."""

    def __init__(self, device: torch.device) -> None:
        # A device without an index is the current one, which a tensor there names.
        self._device = torch.empty(0, device=device).device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._lock = Lock()
        self._ended = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.memory_bytes = 0

    def runs_on(self, device: torch.device) -> bool:
        return device == self._device

    def record(self, call: Callable[[], Sequence[Tensor]]) -> Recording:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        before = torch.cuda.memory_reserved(self._device)
        self._stream.wait_stream(current)
        # Not torch.cuda.graph, which empties the cache and collects garbage: tenths of a second.
        with _without_collection(), torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                outputs = tuple(call())
            except BaseException:
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        current.wait_stream(self._stream)
        self.memory_bytes += torch.cuda.memory_reserved(self._device) - before
        return _CudaGraph(graph, outputs)

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._lock:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(self._ended)
            yield
            self._ended.record(current)


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: tuple[Tensor, ...]) -> None:
        self._graph = graph
        self.outputs = outputs

    def replay(self) -> None:
        self._graph.replay()


@contextmanager
def _without_collection() -> Iterator[None]:
    """Freed CUDA objects would end a capture that is under way."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class StaticCall:
    """`call` on buffers of its own, recorded when this is created. Inputs are copied in, and results are copies."""

    def __init__(
        self,
        recorder: Recorder,
        call: Callable[[Sequence[Tensor]], Sequence[Tensor]],
        inputs: Sequence[Tensor],
        *,
        taped: bool = False,
    ) -> None:
        """`inputs` have the shapes, dtypes and strides of all later ones. With `taped` the call runs as always, on a
        tape, and the tape is recorded (see `op_tape`). Raises RuntimeError where either is impossible.
        """
        self._recorder = recorder
        # Normal tensors, whoever makes the first call: those of inference mode could not be written later.
        with torch.inference_mode(False), torch.no_grad(), recorder.turn():
            self._inputs = [_like(tensor) for tensor in inputs]
            torch._foreach_copy_(self._inputs, list(inputs))
            run = partial(call, self._inputs)
            self._recording = recorder.record(OpTape.of(run)[0].run if taped else run)

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The result of `call` for `inputs`."""
        with torch.no_grad(), self._recorder.turn():
            torch._foreach_copy_(self._inputs, list(inputs))
            self._recording.replay()
            return tuple(output.clone() for output in self._recording.outputs)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
