"""Runs of the items of a tuning: dense paths, references and rules, each batch stored as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kontext_fast.errors import Refused
from kontext_fast.optimizations.base import Optimization
from kontext_fast.pipeline.edit import EditRequest, edit, final_latents, plan_for
from kontext_fast.pipeline.edit_many import images_per_call
from kontext_fast.tuning.fit import Products
from kontext_fast.tuning.parts import Part, Parts
from kontext_fast.tuning.precisions import BlockPrecision, EditTimes, Mixture, path_runner
from kontext_fast.tuning.request import TuneRequest
from kontext_fast.tuning.schemes import Rule
from kontext_fast.tuning.solver_fit import DensePart, dense_arrays
from kontext_fast.tuning.store import Arrays, Store
from kontext_fast.verify.converged import Array, relative_distances
from kontext_fast.verify.converged_reference import converged_reference
from kontext_fast.verify.paths import PathRunner

if TYPE_CHECKING:
    from torch import Tensor

_BATCH_ON_A_CPU = 16
_LAUNCH_BOUND_BATCH = 200
"""On a GPU that spends the evaluations of a small checkpoint on launching kernels."""
_TIMED_STEPS, _TIMED_EDITS = (2, 10), 3
"""Edits of so many steps are timed, so often each, to know what an evaluation takes and what surrounds it."""

Progress = Callable[[str, int, int], None]
"""(stage, evaluations done, evaluations in all)."""


class StoredRuns:
    """What was stored by an earlier run of the same tuning is not computed again.

    `stage`, `done` and `total` are what progress says: what runs, and the evaluations done and in all.
    """

    def __init__(
        self, pipe: Any, parts: Parts, request: TuneRequest, store: Store, on_progress: Progress | None
    ) -> None:
        self.pipe, self.parts, self.request, self.store = pipe, parts, request, store
        self._on_progress = on_progress
        self.stage, self.done, self.total = "", 0, 0
        self.batches = {name: self._batched(part) for name, part in vars(parts).items()}

    def edit_times(self, precision: BlockPrecision) -> EditTimes:
        """Of edits as a call runs them. Raises Refused where they cannot be measured."""
        if precision == "fp8" and self.pipe._execution_device.type != "cuda":
            raise Refused(
                "The seconds of fp8 cannot be measured here, since its kernels are emulated on a CPU: use a GPU with "
                "fp8, or name the evaluations and one precision."
            )
        return EditTimes.of(self.store.data(f"seconds-{precision}", partial(self._time_edits, precision)))

    def _time_edits(self, precision: BlockPrecision) -> dict[str, float]:
        """Seconds of an edit with plain steps, the fastest of a few, by the number of steps."""
        self.stage = "time of an edit"
        item, seconds = self.parts.fit.items[0], dict[str, float]()
        with self.runner(Mixture(1, precision).optimizations) as runner:
            runner.close()  # Edits run as a call does.
            for steps in _TIMED_STEPS:
                edits = [edit(self.pipe, self._edit_of(item, seed=0, steps=steps)).seconds for _ in range(_TIMED_EDITS)]
                seconds[str(steps)] = min(edits)
        return seconds

    def levels(self, runner: PathRunner, steps: int) -> list[float]:
        """[steps + 1] the noise levels of a call with so many steps, and 0."""
        levels: list[float] = self.store.data(f"levels-{steps:03}", lambda: runner.levels(self.parts.fit.items, steps))
        return levels

    def dense_parts(self, runner: PathRunner, levels: Sequence[float]) -> list[DensePart]:
        """The paths of the items to fit to over `levels`, batch by batch."""
        self.stage = "dense paths to fit to"
        parts = []
        for index, batch in enumerate(self.batches["fit"]):

            def compute(batch: Part) -> dict[str, npt.NDArray[Any]]:
                path = runner.dense(batch.items, batch.seeds, levels)
                steps = self.request.target == "steps"
                end = runner.euler(batch.items, batch.seeds, self.request.steps) if steps else path.states[-1]
                return dense_arrays(path, end)

            arrays = self.store.arrays(f"fit-{index:04}", partial(compute, batch))
            products = Products(*(np.asarray(arrays[name]) for name in ("gram", "cross", "squares")))
            parts.append(DensePart(batch, arrays["states"], arrays["target"], products))
        return parts

    def targets(self, runner: PathRunner, name: str) -> list[Arrays]:
        """Of each batch: `target`; of the held-out ones beside a converged reference also `steps`, what the steps of a
        call give, and the reference's own `error` [I]."""
        self.stage = "items to choose by" if name == "choose" else "reference of the held-out items"
        return [
            self.store.arrays(f"{name}-{index:04}", partial(self._target, runner, batch, fine=name == "held_out"))
            for index, batch in enumerate(self.batches[name])
        ]

    def _target(self, runner: PathRunner, batch: Part, *, fine: bool) -> dict[str, npt.NDArray[Any]]:
        request = self.request
        if not fine and request.target == "converged":
            levels = self.levels(runner, request.grid)
            return {"target": _numpy(runner.dense(batch.items, batch.seeds, levels, keep=False).states[-1])}
        steps = _numpy(runner.euler(batch.items, batch.seeds, request.steps))
        if request.target == "steps":
            return {"target": steps}
        reference = converged_reference(runner, batch.items, batch.seeds, request.reference)
        return {"steps": steps, "target": reference.target, "error": reference.error}

    def as_diffusers_runs_it(self, held_out: Sequence[Arrays]) -> Array:
        """[I] distances of the pipeline without anything applied to it."""
        import torch

        self.stage, steps = "baseline as diffusers runs it", self.request.steps

        def compute(batch: Part, target: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
            requests = [
                self._edit_of(item, seed=seed, steps=steps) for item, seed in zip(batch.items, batch.seeds, strict=True)
            ]
            with torch.inference_mode():
                latents = final_latents(self.pipe, requests)
            self._note(steps * len(batch))
            return {"distances": relative_distances(_numpy(latents), target)}

        return np.concatenate(
            [
                self.store.arrays(f"as-diffusers-{index:04}", partial(compute, batch, of_batch["target"]))["distances"]
                for index, (batch, of_batch) in enumerate(zip(self.batches["held_out"], held_out, strict=True))
            ]
        )

    def distances_of_rule(
        self,
        runner: PathRunner,
        part: str,
        targets: Sequence[Arrays],
        name: str,
        rule: Rule,
    ) -> Array:
        """[I] of a rule on a part of the items."""

        def compute(batch: Part, target: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
            final = _numpy(runner.run(batch.items, batch.seeds, rule))
            return {"distances": relative_distances(final, target)}

        return np.concatenate(
            [
                self.store.arrays(f"{part}-{name}-{index:04}", partial(compute, batch, target["target"]))["distances"]
                for index, (batch, target) in enumerate(zip(self.batches[part], targets, strict=True))
            ]
        )

    # How it is run.

    def runner(self, optimizations: Sequence[Optimization]) -> AbstractContextManager[PathRunner]:
        """Runs items with `optimizations` while it is open."""
        items = sum(len(part) for part in vars(self.parts).values())
        return path_runner(self.pipe, optimizations, self.request, items=items, on_progress=self._note)

    @contextmanager
    def runners(self) -> Iterator[Callable[[Sequence[Optimization]], PathRunner]]:
        """One at a time, which stays as long as the next one asked for has the same optimizations."""
        with ExitStack() as current:
            latest: list[tuple[Sequence[Optimization], PathRunner]] = []

            def runner_of(optimizations: Sequence[Optimization]) -> PathRunner:
                if not latest or latest[0][0] != optimizations:
                    current.close()
                    latest[:] = [(optimizations, current.enter_context(self.runner(optimizations)))]
                return latest[0][1]

            yield runner_of

    def _edit_of(self, item: Any, *, seed: int, steps: int) -> EditRequest:
        request = self.request
        return EditRequest(
            item.instruction, item.image, steps=steps, guidance=request.guidance, seed=seed, size=request.size
        )

    def _note(self, evaluations: int) -> None:
        self.done += evaluations
        if self._on_progress is not None:
            self._on_progress(self.stage, self.done, self.total)

    def _batched(self, part: Part) -> list[Part]:
        """Neighbours of one size, as many as one call takes."""
        most = self.request.images_per_call or self._default_images_per_call()
        batches: list[Part] = []
        for item, seed in zip(part.items, part.seeds, strict=True):
            last = batches[-1] if batches else None
            if last and len(last) < most and self.sides(last.items[0]) == self.sides(item):
                batches[-1] = Part([*last.items, item], [*last.seeds, seed])
            else:
                batches.append(Part([item], [seed]))
        return batches

    def _default_images_per_call(self) -> int:
        if self.pipe._execution_device.type == "cpu":
            return _BATCH_ON_A_CPU
        return _LAUNCH_BOUND_BATCH if images_per_call(self.pipe) > 1 else 1

    def sides(self, item: Any) -> tuple[int, int]:
        """(width, height) in pixels, as an edit of the item runs."""
        plan = plan_for(self.pipe, item.image.size, self.request.size)
        return plan.width, plan.height


def _numpy(latents: Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(latents.float().cpu().numpy())
