"""`extrapolated_steps`: the first steps, the last ones and one in a few between, the others along a line."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from kontext_fast.bench.peers.block_tracer import BlockTracer
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import track_calls
from kontext_fast.optimizations.patching import replace_method

if TYPE_CHECKING:
    from kontext_fast.optimizations.call_tracking import PipelineCall


class ExtrapolatedSteps(Optimization):
    """A skipped step takes the velocity on the line through the last two computed ones, over the noise level."""

    name: ClassVar[str] = "extrapolated_steps"
    summary: ClassVar[str] = "computes the first, the last and every third step, the others along a line (Replicate)"
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.STEPS

    first: Annotated[int, Field(ge=2)] = 3
    last: Annotated[int, Field(ge=1)] = 3
    every: Annotated[int, Field(ge=1)] = 3

    def computed_steps(self, total: int) -> frozenset[int]:
        """The 0-based steps that are computed in a request of `total` steps."""
        between = range(self.first - 1, total, self.every)
        return frozenset({*range(self.first), *between, *range(total - self.last, total)})

    def label(self, *, architecture_only: bool) -> str | None:
        """How many steps are computed."""
        return f"{self.name} on a fixed schedule: {len(self.computed_steps(28))} of 28 steps computed"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Skip the transformer in the other steps of each request, in both passes of true CFG."""
        tracer, calls = BlockTracer(pipe.transformer, undo), track_calls(pipe, undo)
        branch = object()

        def remember(call: PipelineCall, index: int) -> AbstractContextManager[Any]:
            call.memory[branch] = index
            return nullcontext()

        def forward(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = calls.current
            if call is None:
                return original(*args, **kwargs)
            if self.name not in call.memory:
                # Read once a request: on a GPU each reading waits for the device.
                call.memory[self.name] = pipe.scheduler.sigmas.tolist()
            sigmas = call.memory[self.name]
            known = call.memory.setdefault((self.name, call.memory[branch]), [])
            sigma = sigmas[call.step]
            if call.step in self.computed_steps(call.total_steps):
                output = original(*args, **kwargs)
                known[:] = [*known[-1:], (sigma, output[0])]
                return output
            (before, earlier), (at, latest) = known
            return (latest + (latest - earlier) * ((sigma - at) / (at - before)),)

        replace_method(pipe.transformer, "forward", forward, undo)
        tracer.mark_passes(pipe, undo, remember)
        return {}
