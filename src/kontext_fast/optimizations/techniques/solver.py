"""`solver`: a linear multistep rule in place of Euler's method, as a rule fitted to a checkpoint or a classical one.

It brings a scheduler of its own, so that as many steps run as the rule has evaluations: callbacks and progress see
those, and nothing at all is done for others. It works with and without the engine, under true CFG and in batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from kontext_fast.engine.solver import Solver, SolverRun, adams_bashforth
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.base import Conflict, Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import PipelineCall
from kontext_fast.optimizations.fitted_for import FittedFor


class FittedSolver(Optimization):
    """Runs the evaluations of a rule and combines their velocities, with latents and times in float32."""

    name: ClassVar[str] = "solver"
    summary: ClassVar[str] = (
        "a multistep rule in float32 in place of Euler's method; kontext tune fits one to your weights"
    )
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.SCHEDULE
    conflicts: ClassVar[tuple[Conflict, ...]] = (
        Conflict("step_reuse", because="a solver decides which evaluations run; leave step_reuse out"),
        Conflict("first_block_cache", because="a solver needs what the whole transformer says; leave the cache out"),
    )

    fitted: Solver | None = None
    """The rule. None: the Adams-Bashforth rule of `order` over the steps that a call asks for."""
    fitted_for: FittedFor | None = None
    """The weights and the calls that `fitted` was fitted to; other weights are refused, other calls get a caution."""
    order: Literal[1, 2, 3] = 2
    """Of the rule that is not fitted; 1 is Euler's method, with latents and times in float32."""

    @model_validator(mode="after")
    def _one_rule(self) -> FittedSolver:
        if self.fitted is not None and "order" in self.model_fields_set:
            raise ValueError("a fitted rule has no order; leave it out")
        if self.fitted is None and self.fitted_for is not None:
            raise ValueError("there is no rule that was fitted; give fitted, or leave fitted_for out")
        return self

    def parameters(self) -> dict[str, Any]:
        """Those of the rule that it runs."""
        return self.model_dump(mode="json", exclude={"fitted", "fitted_for"} if self.fitted is None else {"order"})

    def parameters_for_people(self) -> dict[str, Any]:
        """Of a fitted rule its size and what it was fitted to, instead of all its numbers."""
        if self.fitted is None:
            return self.parameters()
        fitted_to = None if self.fitted_for is None else self.fitted_for.checkpoint
        return {"evaluations": self.fitted.evaluations, "fitted_to": fitted_to}

    def on_random_weights(self) -> FittedSolver:
        """The same rule for weights that nobody fitted it to: its time is the same."""
        return self.model_copy(update={"fitted_for": None})

    def label(self, *, architecture_only: bool) -> str | None:
        """How many evaluations a fitted rule runs, and that what it makes of random weights means nothing."""
        if self.fitted is None:
            return None
        stated = f"solver: {self.fitted.evaluations} evaluations, whatever number of steps is asked for"
        return f"{stated} (fitted to other weights than these random ones)" if architecture_only else stated

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Put the scheduler in, check the weights, and have every call checked.

        The fact `cautions` has what must be said of the most recent call. Raises InvalidInput if the rule was fitted
        to other weights, and for a scheduler that is no plain FlowMatchEulerDiscreteScheduler.
        """
        from kontext_fast.optimizations.solver_scheduler import run_solver

        facts: Facts = {"cautions": []}
        always = [] if self.fitted_for is None else list(self.fitted_for.cautions_about_weights(pipe.transformer))
        calls = run_solver(pipe, lambda sigmas: SolverRun(self._solver(sigmas)), undo)

        def check(call: PipelineCall) -> None:
            if (strength := call.arguments.get("strength", 1.0)) < 1:
                raise InvalidInput(
                    f"A solver runs from noise alone, and a strength of {strength} begins with an image; leave the "
                    "strength at 1, or use a preset without a solver."
                )
            for sentence in (*always, *self._cautions(call)):
                call.caution(sentence)
            facts["cautions"] = call.cautions

        calls.on_begin(check, undo)
        return facts

    def _solver(self, sigmas: Sequence[float]) -> Solver:
        if self.fitted is not None:
            return self.fitted
        if any(after >= before for before, after in itertools.pairwise(sigmas)):
            raise InvalidInput("A solver needs noise that falls at every step; use a plain scheduler.")
        return adams_bashforth(sigmas, self.order)

    def _cautions(self, call: PipelineCall) -> Iterator[str]:
        if self.fitted_for is not None:
            yield from self.fitted_for.cautions_about_call(call.arguments)
