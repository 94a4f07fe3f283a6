"""A recorder for a CPU: its recordings behave as a CUDA graph does, at fixed addresses and without Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor

from kontext_fast.engine.graphs.op_tape import OpTape


class TapedRecording:
    """A tape, run again into the outputs of its first run."""

    def __init__(self, call: Callable[[], Sequence[Tensor]]) -> None:
        self._tape, outputs = OpTape.of(call)
        self.outputs = tuple(outputs)
        for output in self.outputs:  # as a capture, which runs nothing
            output.fill_(float("nan") if output.is_floating_point() else 0)

    def replay(self) -> None:
        for output, now in zip(self.outputs, self._tape.run(), strict=True):
            output.copy_(now)


class TapeRecorder:
    """Counts what it records, and runs one recording at a time."""

    def __init__(self) -> None:
        self.recorded = 0
        self._running = Lock()

    @property
    def memory_bytes(self) -> int:
        return 1000 * self.recorded

    def runs_on(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def record(self, call: Callable[[], Sequence[Tensor]]) -> TapedRecording:
        self.recorded += 1
        return TapedRecording(call)

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._running:
            yield
