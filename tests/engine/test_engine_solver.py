"""Rules of evaluations: what they add up to, known rules written as one, and data that is no rule."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from kontext_fast.engine.solver import Solver, SolverRun, adams_bashforth, reused_steps
from kontext_fast.engine.step_reuse import Schedule, Velocities

SIGMAS = [1.0, 0.93, 0.8, 0.62, 0.45, 0.3, 0.12, 0.05, 0.0]


def solved(solver: Solver, start: Tensor, velocity: object) -> Tensor:
    """The result of `solver` for a velocity that is a function of latents and noise level."""
    run, latents = SolverRun(solver), start
    for level in solver.noise_levels:
        latents = run.advance(latents, velocity(latents, level))  # type: ignore[operator]
    return latents


def test_a_row_combines_noise_and_velocities() -> None:
    solver = Solver(noise_levels=(1.0, 0.5), coefficients=((0.5, 2.0), (3.0, -1.0, 4.0)))
    run, noise = SolverRun(solver), torch.tensor([1.0, 2.0])
    first = run.advance(noise, torch.tensor([10.0, 20.0]))
    assert first.tolist() == [20.5, 41.0]
    # What is said to be the latents now does not matter: the run keeps its own.
    second = run.advance(torch.zeros(2), torch.tensor([1.0, 1.0]))
    assert second.tolist() == [3.0 - 10.0 + 4.0, 6.0 - 20.0 + 4.0]
    with pytest.raises(IndexError):
        run.advance(torch.zeros(2), torch.ones(2))


def test_a_run_in_bfloat16_keeps_float32() -> None:
    steps = [1 - step / 256 for step in range(257)]
    solver = adams_bashforth(steps, 1)
    run, given = SolverRun(solver), torch.full((3,), 100.0, dtype=torch.bfloat16)
    for _ in range(256):
        latents = run.advance(given, torch.full((3,), 1.0, dtype=torch.bfloat16))
        given = latents.to(torch.bfloat16)
    assert latents.dtype is torch.float32
    # Steps of 1/256 vanish beside 100 in bfloat16.
    assert latents.tolist() == pytest.approx([99.0] * 3, abs=1e-4)


def test_order_one_is_eulers_method() -> None:
    latents = torch.tensor([1.5, -2.0], dtype=torch.float32)
    expected = latents.clone()
    for sigma, until in itertools.pairwise(SIGMAS):
        expected = expected + (until - sigma) * (sigma * expected)
    result = solved(adams_bashforth(SIGMAS, 1), latents, lambda x, sigma: sigma * x)
    torch.testing.assert_close(result, expected)


def test_higher_orders_come_nearer_and_converge_faster() -> None:
    def error(order: int, steps: int) -> float:
        sigmas = [1 - step / steps for step in range(steps + 1)]
        result = solved(adams_bashforth(sigmas, order), torch.tensor([1.0]), lambda x, _: x)
        return abs(float(result) - math.exp(-1))

    assert error(1, 16) > 10 * error(2, 16)
    assert error(1, 16) > 10 * error(3, 16)
    assert math.log2(error(1, 16) / error(1, 32)) == pytest.approx(1, abs=0.1)
    # The first step is Euler's, which leaves the second order.
    assert math.log2(error(2, 16) / error(2, 32)) == pytest.approx(2, abs=0.35)


@pytest.mark.parametrize("corrects", [True, False])
@pytest.mark.parametrize("order", [0, 1])
def test_reused_steps_give_what_step_reuse_gives(order: int, corrects: bool) -> None:
    schedule = Schedule(frozenset({0, 2, 3, 6, 7}), order, corrects)  # type: ignore[arg-type]

    def velocity(latents: Tensor, sigma: float) -> Tensor:
        return torch.sin(3 * latents) + sigma

    start = torch.linspace(-1, 1, 5)
    velocities, latents = Velocities(schedule.order, corrects=corrects), start
    for step, (sigma, until) in enumerate(itertools.pairwise(SIGMAS)):
        if step in schedule.computed:
            given = velocities.computed(sigma, until, velocity(latents, sigma))
        else:
            given = velocities.skipped(sigma, until)
        latents = latents + (until - sigma) * given
    solver = reused_steps(SIGMAS, schedule)
    assert solver.noise_levels == tuple(SIGMAS[step] for step in sorted(schedule.computed))
    torch.testing.assert_close(solved(solver, start, velocity), latents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("levels", "rows", "complaint"),
    [
        ((1.0, 1.0), ((1.0, 0.1), (1.0, 0.1, 0.1)), "noise levels fall"),
        ((1.1,), ((1.0, 0.1),), "from 1 at most"),
        ((1.0, 0.0), ((1.0, 0.1), (1.0, 0.1, 0.1)), "more than 0"),
        ((1.0, 0.5), ((1.0, 0.1),), "2 noise levels need as many rows of coefficients, not 1"),
        ((1.0, 0.5), ((1.0, 0.1), (1.0, 0.1)), "row 2 of the coefficients has 2 numbers and needs 3"),
        ((1.0,), ((float("nan"), 0.1),), "finite"),
        ((), (), "at least 1"),
    ],
)
def test_data_that_is_no_rule_is_named(
    levels: tuple[float, ...], rows: tuple[tuple[float, ...], ...], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Solver(noise_levels=levels, coefficients=rows)


def test_the_hash_is_of_all_numbers() -> None:
    solver = adams_bashforth(SIGMAS, 2)
    assert solver.content_hash == adams_bashforth(SIGMAS, 2).content_hash
    rows = [list(row) for row in solver.coefficients]
    rows[3][1] += 1e-9
    assert solver.content_hash != Solver(noise_levels=solver.noise_levels, coefficients=rows).content_hash
