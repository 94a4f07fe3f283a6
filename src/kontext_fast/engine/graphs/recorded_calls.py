"""Which calls are recorded: the second one of a kind, where it can be repeated to the bit; later ones are replayed.

The first call of a kind compiles and loads what it needs, so it runs as always. What cannot be recorded goes on running
as before, which is counted with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from threading import Lock
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from kontext_fast.engine.graphs.recording import Recorder, StaticCall

Call = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""New tensors from its inputs. Whatever else it depends on is in the key and the state that are given with it."""


def new_facts() -> dict[str, Any]:
    """What several `RecordedCalls` may count together: `graphs` that exist, `replays`, `record_s` that recording took
    in all, `pool_bytes` of their memory, and `unrecorded`: how often a call ran as before, by reason."""
    return {"graphs": 0, "replays": 0, "record_s": 0.0, "pool_bytes": 0, "unrecorded": {}}


class RecordedCalls:
    """The recordings of one function, by key, layout of the inputs, and what decides which kernels run."""

    def __init__(
        self, recorder: Recorder, facts: dict[str, Any], most: int, everywhere: Callable[[bool], bool] = bool
    ) -> None:
        """`facts` are counted up; of more than `most` recordings the one goes that was used least recently.

        `everywhere`: whether what holds here holds in all processes that make the same calls together, which then
        replay all of them or none."""
        self._recorder = recorder
        self._facts = facts
        self._most = most
        self._everywhere = everywhere
        self._state: Hashable = None
        self._seen: set[Hashable] = set()
        self._failed: dict[Hashable, str] = {}
        self._recorded: dict[Hashable, StaticCall] = {}
        # Calls of copies of a pipeline run in several threads.
        self._lock = Lock()

    def run(
        self, key: Hashable, call: Call, inputs: Sequence[Tensor], *, state: Hashable = None, taped: bool = False
    ) -> Sequence[Tensor]:
        """The result of `call(inputs)`, to the bit. All recordings of another `state` are dropped.

        `taped`: record the operations of a call that runs as always (see `op_tape`), instead of those of a call that
        may ask whether it is being captured."""
        if _get_current_dispatch_mode() is not None:
            # Whoever watches operations would see none.
            self.count("operations are watched")
            return call(inputs)
        key = (key, kernel_switches(), *((x.shape, x.stride(), x.dtype, x.device) for x in inputs))
        with self._lock:
            if state != self._state:
                self._clear()
                self._state = state
            if (recorded := self._recorded.pop(key, None)) is not None:
                self._recorded[key] = recorded
                self._facts["replays"] += 1
        if recorded is not None:
            return recorded(inputs)
        result = call(inputs)
        with self._lock:
            if key in self._failed:
                self._add(self._failed[key])
            elif key not in self._seen:
                self._seen.add(key)
                self._add("first of its layout")
            elif key not in self._recorded:
                self._record(key, call, inputs, result, taped)
        return result

    def count(self, reason: str) -> None:
        """Note that a call ran as before."""
        with self._lock:
            self._add(reason)

    def clear(self) -> None:
        """Drop all recordings."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        self._facts["graphs"] -= len(self._recorded)
        self._recorded.clear()
        self._seen.clear()
        self._failed.clear()

    def _record(
        self, key: Hashable, call: Call, inputs: Sequence[Tensor], expected: Sequence[Tensor], taped: bool
    ) -> None:
        began = perf_counter()
        recorded, reason = None, "cannot be recorded in another process"
        try:
            recorded = StaticCall(self._recorder, call, inputs, taped=taped)
        except RuntimeError as error:
            reason = f"cannot be recorded ({str(error).splitlines()[0]})"
        if not self._everywhere(recorded is not None) or recorded is None:
            self._failed[key] = reason
        elif self._everywhere(all(map(_same_bits, recorded(inputs), expected))):
            self._keep(key, recorded)
        else:
            self._failed[key] = "a recording computes other numbers"
        self._add(self._failed.get(key, "recorded"))
        self._facts["record_s"] += perf_counter() - began
        self._facts["pool_bytes"] = self._recorder.memory_bytes

    def _keep(self, key: Hashable, recorded: StaticCall) -> None:
        while len(self._recorded) >= self._most:
            del self._recorded[next(iter(self._recorded))]
            self._facts["graphs"] -= 1
        self._recorded[key] = recorded
        self._facts["graphs"] += 1

    def _add(self, reason: str) -> None:
        unrecorded = self._facts["unrecorded"]
        unrecorded[reason] = unrecorded.get(reason, 0) + 1


class StepGraphs:
    """Recordings of a transformer's steps, one per layout, for steps that are over before a host has launched them."""

    MOST = 8
    """Layouts."""

    def __init__(self, recorder: Recorder, most_tokens: int | None, everywhere: Callable[[bool], bool] = bool) -> None:
        """`most_tokens`: of all samples of a step. One of more runs kernel by kernel, as its kernels take longer than
        their launches; None: all are recorded. `everywhere`: see `RecordedCalls`."""
        self.most_tokens = most_tokens
        self.facts = {"up_to_tokens": most_tokens, **new_facts()}
        self._calls = RecordedCalls(recorder, self.facts, self.MOST, everywhere)

    def run(self, key: Hashable, step: Call, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The result of `step(inputs)`, to the bit; the first two inputs are image and text tokens."""
        image, text = inputs[:2]
        if self.most_tokens is not None and len(text) * (image.shape[1] + text.shape[1]) > self.most_tokens:
            self._calls.count("more tokens")
            return step(inputs)
        return self._calls.run(key, step, inputs)

    def clear(self) -> None:
        """Drop all recordings."""
        self._calls.clear()


def kernel_switches() -> tuple[Any, ...]:
    """What decides, besides its inputs, which kernels an operation runs."""
    from torch.backends import cuda

    return (
        torch.is_autocast_enabled("cuda"),
        cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
        cuda.mem_efficient_sdp_enabled(),  # type: ignore[no-untyped-call]
        cuda.math_sdp_enabled(),  # type: ignore[no-untyped-call]
        cuda.cudnn_sdp_enabled(),  # type: ignore[no-untyped-call]
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        cuda.matmul.allow_bf16_reduced_precision_reduction,
    )


def _same_bits(result: Tensor, expected: Tensor) -> bool:
    # As bytes, so that a NaN equals itself.
    return torch.equal(result.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))
