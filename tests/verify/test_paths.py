"""Runs of a pipeline in float32 against what the pipeline itself makes, on one of a block of each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline

from kontext_fast.datasets.base import Item
from kontext_fast.engine.solver import Solver, adams_bashforth
from kontext_fast.errors import Refused
from kontext_fast.optimizations.call_tracking import track_calls
from kontext_fast.pipeline.edit import EditRequest, final_latents
from kontext_fast.verify import converged_reference as reference
from kontext_fast.verify.converged import DISTANCE, DISTANCE_IN_FLOAT32, REFERENCE_ERROR, relative_distances
from kontext_fast.verify.converged_reference import ReferenceStore
from kontext_fast.verify.paths import DensePath, EulerPath, PathRunner
from tests.metrics.cases import FreeItem
from tests.pipelines import picture, small_pipeline

ITEMS: tuple[Item, ...] = tuple(
    FreeItem(id=f"item {index}", instruction=f"make it {colour}", image=picture(index))
    for index, colour in enumerate(("red", "blue"))
)
SEEDS = (3, 8)
STEPS = 4
GUIDANCE = 3.5


class Counted(PathRunner):
    """A runner that keeps what it said of its progress."""

    def __init__(self, pipe: Any, **more: Any) -> None:
        self.counts: list[int] = []
        super().__init__(pipe, steps=STEPS, guidance=GUIDANCE, size=(64, 64), on_progress=self.counts.append, **more)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small_pipeline()


@pytest.fixture
def runner(pipe: Any) -> Iterator[Counted]:
    runner = Counted(pipe)
    yield runner
    runner.close()


def requests(steps: int = STEPS, guidance: float = GUIDANCE, **more: Any) -> list[EditRequest]:
    return [
        EditRequest(item.instruction, item.image, steps=steps, guidance=guidance, seed=seed, size=(64, 64), **more)
        for item, seed in zip(ITEMS, SEEDS, strict=True)
    ]


def made(pipe: Any, requests: list[EditRequest]) -> torch.Tensor:
    with torch.inference_mode():
        return final_latents(pipe, requests)


def test_euler_is_what_the_pipeline_does(pipe: Any, runner: Counted) -> None:
    paths = {steps: runner.euler(ITEMS, SEEDS, steps) for steps in (2, STEPS)}
    assert runner.counts == [2 * 2, 2 * STEPS]
    runner.close()
    for steps, end in paths.items():
        torch.testing.assert_close(end, made(pipe, requests(steps)))


def test_every_field_of_an_edit_reaches_the_model(pipe: Any) -> None:
    more = {"negative": "make it green", "true_cfg": 3.0}
    runner = Counted(pipe, **more)
    end = runner.euler(ITEMS, SEEDS, 2)
    runner.close()
    expected = made(pipe, requests(2, **more))
    torch.testing.assert_close(end, expected)
    assert not torch.allclose(expected, made(pipe, requests(2)), atol=0.05)
    assert not torch.equal(made(pipe, requests(2)), made(pipe, requests(2, guidance=1.0)))


def test_levels_are_those_of_the_pipeline_with_so_many_steps(pipe: Any, runner: Counted) -> None:
    levels = {steps: runner.levels(ITEMS, steps) for steps in (3, 9)}
    assert runner.counts == [1, 1], "one evaluation of one item each"
    runner.close()
    for steps, of_path in levels.items():
        made(pipe, requests(steps)[:1])
        assert of_path == pipe.scheduler.sigmas.tolist()
        assert len(of_path) == steps + 1


def test_dense_path_is_kept_whole_or_its_end_alone(pipe: Any, runner: Counted) -> None:
    levels = [1.0, 0.8, 0.5, 0.2, 0.0]
    whole = runner.dense(ITEMS, SEEDS, levels)
    assert (len(whole.states), len(whole.velocities), runner.counts) == (5, 4, [2 * 4])
    end = runner.dense(ITEMS, SEEDS, levels, keep=False)
    (state,) = end.states
    assert len(end.velocities) == 3, "those of the latest steps, as many as its order"
    assert torch.equal(state, whole.states[-1])
    torch.testing.assert_close(whole.states[1], whole.states[0] - 0.2 * whole.velocities[0])
    rule = adams_bashforth(levels, 3)
    torch.testing.assert_close(runner.run(ITEMS, SEEDS, lambda _: rule), state)
    noise = torch.cat(
        [pipe.prepare_latents(None, 1, 16, 64, 64, torch.float32, "cpu", seeded(seed))[0] for seed in SEEDS]
    )
    torch.testing.assert_close(whole.states[0], noise)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("path_over", [EulerPath, lambda levels: DensePath(levels, 3, keep=True)])
def test_rounding_of_what_the_model_is_given_does_not_add_up(path_over: Callable[[list[float]], Any]) -> None:
    """A pipeline in bfloat16 gives back the latents rounded; a path goes on with its own."""
    exact, rounded = path_over([1.0, 0.7, 0.3, 0.0]), path_over([1.0, 0.7, 0.3, 0.0])
    latents = torch.full((1, 2, 2), 1 / 3)
    velocities = [torch.full((1, 2, 2), value) for value in (0.1, 0.37, 0.91)]
    given = exact_latents = latents
    for velocity in velocities:
        exact_latents, following = exact.advance(exact_latents, velocity), rounded.advance(given, velocity)
        assert torch.equal(following, exact_latents)
        given = following.bfloat16()


def test_rule_gets_the_levels_of_an_edit(runner: Counted) -> None:
    seen: list[float] = []

    def euler(levels: Any) -> Solver:
        seen.extend(levels)
        return adams_bashforth(levels, 1)

    end = runner.run(ITEMS, SEEDS, euler)
    assert seen == runner.levels(ITEMS, STEPS)
    torch.testing.assert_close(end, runner.euler(ITEMS, SEEDS, STEPS))
    assert runner.counts == [2 * STEPS, 1, 2 * STEPS]


def test_velocity_is_that_of_the_path_at_its_place(pipe: Any, runner: Counted) -> None:
    levels = [1.0, 0.6, 0.3, 0.0]
    places: list[Any] = []
    with ExitStack() as undo:
        track_calls(pipe, undo).on_begin(lambda call: places.append(call.place), undo)
        path = runner.dense(ITEMS, SEEDS, levels)
        for index in (0, 2):
            velocity = runner.velocity(ITEMS, SEEDS, path.states[index], levels[index], (index, 3))
            torch.testing.assert_close(velocity, path.velocities[index])
        runner.levels(ITEMS, 2)
    assert places == [None, (0, 3), (2, 3), None], "a place holds for its call alone"
    assert runner.counts == [2 * 3, 2, 2, 1]


def test_closed_runner_leaves_the_pipeline_as_before(pipe: Any) -> None:
    before = (type(pipe), pipe.scheduler, set(vars(pipe.transformer)))
    runner = Counted(pipe)
    assert type(pipe) is not before[0]
    runner.close()
    assert (type(pipe), pipe.scheduler, set(vars(pipe.transformer))) == before


def test_items_without_a_seed_each_do_not_run(runner: Counted) -> None:
    with pytest.raises(ValueError, match="shorter"):
        runner.euler(ITEMS, SEEDS[:1], 1)
    assert runner.counts == []


def test_latents_that_are_not_finite_are_refused() -> None:
    broken = small_pipeline()
    broken.transformer.proj_out.register_forward_hook(lambda *call: call[-1] / 0)
    runner = Counted(broken)
    with pytest.raises(Refused, match="latents are not finite"):
        runner.euler(ITEMS, SEEDS, 1)
    assert runner.counts == []


def test_stored_references_tell_the_distances_of_an_output(
    pipe: Any, runner: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the output that baseline itself makes in float32, right before decoding."""
    monkeypatch.setattr(reference, "converged_reference", partial(reference.converged_reference, steps=6))
    store = ReferenceStore(tmp_path / "work")
    keys = [(item.id, 5) for item in ITEMS]
    assert not any(key in store for key in keys)
    runner.steps = 3
    store.add(runner, ITEMS, 5)
    assert sum(runner.counts) == 2 * 3 + 2 * reference.reference_evaluations(6) + 2, "and one for the levels of each"
    assert all(key in store for key in keys)
    assert ("item 0", 6) not in store
    assert {file.suffix for file in tmp_path.rglob("*.*")} == {".npz"}
    store.add(runner, ITEMS[:1], 6)
    assert ("item 0", 6) in store
    # Another store of the folder, as after a stop, has them, too.
    again = ReferenceStore(tmp_path / "work")
    seeds = [5, 5]
    end, expected = runner.euler(ITEMS, seeds, 3), reference.converged_reference(runner, ITEMS, seeds)
    distances = relative_distances(end.numpy(), expected.target)
    vae = pipe.vae.config
    for index, key in enumerate(keys):
        unpacked = FluxKontextPipeline._unpack_latents(end[index : index + 1], 64, 64, pipe.vae_scale_factor)
        np.save(tmp_path / "latents.npy", (unpacked / vae["scaling_factor"] + vae["shift_factor"])[0].numpy())
        scores = again.distances(key, tmp_path / "latents.npy", vae)
        assert scores == pytest.approx(
            {
                DISTANCE: distances[index],
                DISTANCE_IN_FLOAT32: distances[index],
                REFERENCE_ERROR: expected.error[index],
            },
            rel=1e-4,
        )
    assert distances[0] != pytest.approx(distances[1], rel=0.01)


def test_reference_follows_the_levels_of_a_call_and_is_finer_at_both_ends() -> None:
    asked: list[Any] = []

    class Levels:
        """Gives the levels of a call as its steps have them, and no path."""

        def levels(self, items: Any, steps: int) -> list[float]:
            asked.append((items, steps))
            return [1.0, 0.9, 0.0]

        def dense(self, items: Any, seeds: Any, levels: list[float], *, keep: bool) -> Any:
            asked.append((items, seeds, levels, keep))
            raise InterruptedError

    with pytest.raises(InterruptedError):
        reference.converged_reference(Levels(), ITEMS, SEEDS, 4)  # type: ignore[arg-type]
    (_, steps), (items, seeds, levels, keep) = asked
    assert (steps, items, seeds, keep) == (1000, ITEMS, SEEDS, False)
    # At 0, 1/8, 1/2, 7/8 and 1 of a call, whose levels fall by 0.1 in its first half and by 0.9 in its second.
    assert levels == pytest.approx([1.0, 0.975, 0.9, 0.225, 0.0])
    lengths = [before - after for before, after in pairwise(levels)]
    assert lengths[0] < lengths[1]
    assert lengths[3] < lengths[2]
