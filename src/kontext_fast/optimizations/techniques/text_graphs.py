"""`text_graphs`: the text encoders as CUDA graphs, since the host takes longer to launch their kernels than they run.

T5 has 24 layers of some sixty operations each, all of them small at 512 tokens. A graph launches them at once. It is
built from the operations that a call runs otherwise, in the same order, and has to reproduce the bits of that call
before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.base import Conflict, Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import track_calls
from kontext_fast.optimizations.module_state import module_state, reason_against_recording
from kontext_fast.optimizations.patching import has_another_forward, replace_method
from kontext_fast.pipeline.device import Machine

if TYPE_CHECKING:
    from torch import Tensor

    from kontext_fast.engine.graphs.recording import Recorder, StaticCall

_ENCODERS = ("text_encoder", "text_encoder_2")

_KEPT = 4
"""Graphs per encoder: one for each number of prompts and length. The oldest one goes first."""


class TextGraphs(Optimization):
    """The second call with a number of prompts and a length records a graph, which takes about three times as long as
    encoding; later ones replay it. Weights that moved are recorded again; encoders with adapters or hooks run as
    before, which is counted with the reason. No preset of several optimizations has it: its gain was not measured."""

    name: ClassVar[str] = "text_graphs"
    summary: ClassVar[str] = "text encoders as CUDA graphs, launched at once instead of kernel by kernel"
    effect: ClassVar[Effect] = Effect.EXACT
    phase: ClassVar[Phase] = Phase.COMPILE
    conflicts: ClassVar[tuple[Conflict, ...]] = (
        Conflict("offload", because="offload moves the encoders' weights at each call; leave text_graphs out"),
    )

    def label_on(self, machine: Machine) -> str | None:
        """That only CUDA has graphs."""
        return None if machine.device == "cuda" else f"text_graphs: changes nothing on {machine.device}"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Replace `forward` of the encoders on their instances, for calls of the pipeline.

        Raises InvalidInput where something else replaced a forward. Facts: `graphs` that exist, `replays`, `record_s`
        that recording took in all, `pool_bytes` of their memory, and `unrecorded`: how often an encoder ran as before,
        by reason.
        """
        from kontext_fast.engine.graphs import recording

        facts: Facts = {"graphs": 0, "replays": 0, "record_s": 0.0, "pool_bytes": 0, "unrecorded": {}}
        recorder = recording.recorder_for(pipe._execution_device)
        if recorder is None:
            return facts
        calls = track_calls(pipe, undo)
        for name in _ENCODERS:
            if (encoder := getattr(pipe, name)) is None:
                continue
            if has_another_forward(encoder):
                raise InvalidInput(
                    f"Something replaced the forward of the {name} (offloading does); take that off, or leave "
                    "text_graphs out of the preset."
                )
            graphs = _EncoderGraphs(recorder, facts)

            def encode(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any], graphs: Any = graphs) -> Any:
                if calls.current is None:
                    return original(*args, **kwargs)
                return graphs.run(original, args, kwargs)

            replace_method(encoder, "forward", encode, undo)
            undo.callback(graphs.clear)
        return facts


@dataclass
class _EncoderGraphs:
    """The graphs of one encoder, by shape and arguments."""

    recorder: Recorder
    facts: Facts
    state: tuple[Any, ...] | None = None
    """Of the encoder, when the graphs were recorded."""
    seen: set[Any] = field(default_factory=set)
    """What has run once."""
    failed: dict[Any, str] = field(default_factory=dict)
    """What cannot be recorded, with the reason."""
    graphs: dict[Any, _Graph] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)
    """Held while graphs are looked up or recorded: calls of copies of a pipeline run in several threads."""

    def run(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        encoder, ids = original.__self__, _only_tensor(args, kwargs)
        reason = "other arguments" if ids is None else reason_against_recording(encoder)
        if reason is not None:
            with self.lock:
                self._count(reason)
            return original(*args, **kwargs)
        assert ids is not None
        positional = tuple(value is ids or value for value in args)
        named = tuple(sorted((name, value is ids or value) for name, value in kwargs.items()))
        key = (ids.shape, ids.dtype, ids.device, positional, named)
        with self.lock:
            if (state := module_state(encoder)) != self.state:
                self.clear()
                self.state = state
            if (graph := self.graphs.get(key)) is not None:
                self.facts["replays"] += 1
        if graph is not None:
            return graph.run(ids)
        result = original(*args, **kwargs)
        with self.lock:
            if key in self.failed:
                self._count(self.failed[key])
            elif key not in self.seen:
                self.seen.add(key)
                self._count("first of its length")
            elif key not in self.graphs:
                self._record(key, original, args, kwargs, result)
        return result

    def clear(self) -> None:
        self.facts["graphs"] -= len(self.graphs)
        self.graphs.clear()
        self.seen.clear()
        self.failed.clear()

    def _record(self, key: Any, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any) -> None:
        began = perf_counter()
        try:
            graph = _Graph.of(self.recorder, original, args, kwargs)
        except RuntimeError as error:
            self.failed[key] = f"cannot be recorded ({str(error).splitlines()[0]})"
        else:
            if _equal(graph.run(_only_tensor(args, kwargs)), expected):
                self._keep(key, graph)
            else:
                self.failed[key] = "a recording computes other numbers"
        self._count(self.failed.get(key, "recorded"))
        self.facts["record_s"] += perf_counter() - began
        self.facts["pool_bytes"] = self.recorder.memory_bytes

    def _keep(self, key: Any, graph: _Graph) -> None:
        while len(self.graphs) >= _KEPT:
            del self.graphs[next(iter(self.graphs))]
            self.facts["graphs"] -= 1
        self.graphs[key] = graph
        self.facts["graphs"] += 1

    def _count(self, reason: str) -> None:
        unrecorded = self.facts["unrecorded"]
        unrecorded[reason] = unrecorded.get(reason, 0) + 1


@dataclass(frozen=True)
class _Graph:
    call: StaticCall
    kind: type
    """Of the encoder's output, a mapping of names to tensors."""
    names: tuple[str, ...]

    @classmethod
    def of(cls, recorder: Recorder, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Graph:
        from kontext_fast.engine.graphs.recording import StaticCall

        ids = _only_tensor(args, kwargs)
        outputs: list[Any] = []

        def encode(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            (static,) = inputs
            output = original(
                *(static if value is ids else value for value in args),
                **{name: static if value is ids else value for name, value in kwargs.items()},
            )
            outputs.append((type(output), tuple(output.keys())))
            return tuple(output.values())

        call = StaticCall(recorder, encode, [ids], taped=True)
        return cls(call, *outputs[0])

    def run(self, ids: Any) -> Any:
        return self.kind(**dict(zip(self.names, self.call([ids]), strict=True)))


def _only_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The token ids; None where there are other tensors or arguments that are no plain values."""
    from torch import Tensor

    values = [*args, *kwargs.values()]
    tensors = [value for value in values if isinstance(value, Tensor)]
    plain = all(value is None or isinstance(value, Tensor | bool | int | float | str) for value in values)
    return tensors[0] if plain and len(tensors) == 1 else None


def _equal(result: Any, expected: Any) -> bool:
    import torch

    return all(torch.equal(result[name], expected[name]) for name in expected)
