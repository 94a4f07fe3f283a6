"""Previews of a running edit: when they are made, what they show, and that they change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL.Image import Image

from kontext_fast.engine.solver import adams_bashforth
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.techniques.solver import FittedSolver
from kontext_fast.pipeline.previews import clean_latents, preview_steps, watch_previews
from tests.pipelines import SIDE, render, small_pipeline


@pytest.mark.parametrize(
    ("steps", "previews", "expected"),
    [(28, 3, (7, 14, 21)), (28, 1, (14,)), (28, 0, ()), (2, 3, (1,)), (3, 3, (1, 2)), (1, 3, ())],
)
def test_previews_are_spread_over_the_steps(steps: int, previews: int, expected: tuple[int, ...]) -> None:
    assert preview_steps(steps, previews) == expected


def test_exact_velocity_gives_the_clean_latents() -> None:
    clean, noise = torch.randn(2, 16, 64), torch.randn(2, 16, 64)
    noisy = (1 - 0.3) * clean + 0.3 * noise
    torch.testing.assert_close(clean_latents(noisy, noise - clean, 0.3), clean)


def test_previews_change_nothing_and_near_the_result() -> None:
    pipe = small_pipeline()
    without = render(pipe, steps=6)
    shown: list[tuple[int, tuple[Image, ...]]] = []
    with watch_previews(pipe, (SIDE, SIDE), 2, lambda index, pictures: shown.append((index, pictures))) as spent:
        result = render(pipe, steps=6)
    assert np.array_equal(result, without)
    assert [index for index, _ in shown] == [0, 1]
    assert spent.seconds > 0
    early, late = (np.asarray(pictures[0], np.float32) / 255 for _, pictures in shown)
    assert 0 < np.abs(late - result[0]).mean() < np.abs(early - result[0]).mean()
    assert "step" not in vars(pipe.scheduler)


def test_error_in_a_call_takes_the_watch_off() -> None:
    pipe = small_pipeline()
    with pytest.raises(ZeroDivisionError), watch_previews(pipe, (SIDE, SIDE), 1, lambda *_: 1 / 0):  # type: ignore[arg-type,return-value]
        render(pipe, steps=2)
    assert "step" not in vars(pipe.scheduler)


def test_previews_follow_the_steps_of_a_solver() -> None:
    pipe = small_pipeline()
    shown: list[int] = []
    solver = FittedSolver(fitted=adams_bashforth((1.0, 0.7, 0.4, 0.2, 0.0), 2))
    with (
        accelerate(pipe, [solver], quiet=True),
        watch_previews(pipe, (SIDE, SIDE), 3, lambda index, _: shown.append(index)),
    ):
        render(pipe, steps=28)
    assert shown == [0, 1, 2]
