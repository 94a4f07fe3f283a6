"""Steps of the engine in a call of a pipeline, without what a pipeline does around them, and a hook on its modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from diffusers.hooks import ModelHook
from torch import Tensor

from kontext_fast.optimizations.call_tracking import PipelineCall, tracker_of


class Remembering(ModelHook):  # type: ignore[misc]
    """A hook of diffusers whose state a call has to forget."""

    _is_stateful = True

    def __init__(self) -> None:
        super().__init__()
        self.resets = 0

    def reset_state(self, module: Any) -> None:
        self.resets += 1


@contextmanager
def call_of(pipe: Any, steps: int = 2, arguments: Mapping[str, Any] | None = None) -> Iterator[PipelineCall]:
    """A call of an accelerated pipeline that is about to run the first of `steps`."""
    pipe.scheduler.set_timesteps(steps, mu=0.5)
    pipe._num_timesteps = steps
    calls = tracker_of(pipe)
    assert calls is not None
    with calls.open(pipe, arguments):
        assert calls.current is not None
        yield calls.current


def velocity(pipe: Any, call: PipelineCall, inputs: Mapping[str, Any], **changes: Any) -> Tensor:
    """Of a pass of the step that runs; see `call.end_step`."""
    hidden = inputs["hidden_states"]
    time = pipe.scheduler.timesteps[call.step].to(hidden.dtype).expand(len(hidden)) / 1000
    result: Tensor = pipe.transformer(**{**inputs, "timestep": time, **changes}).sample
    return result
