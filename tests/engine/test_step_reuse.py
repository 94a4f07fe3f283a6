"""Schedules, extrapolation, and a branch that follows them."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from kontext_fast.engine.step_reuse import Schedule, Velocities, computed_steps
from kontext_fast.engine.transformer import Branch, EngineTransformer
from tests.engine.transformers import Shape, engine_on, inputs_for, prepare, random_transformer

SIGMAS = (1.0, 0.8, 0.7, 0.4, 0.35, 0.1)


@pytest.mark.parametrize(
    ("total", "every", "share", "steps"),
    [
        (28, 3, 0.0, {0, 3, 6, 9, 12, 15, 18, 21, 24, 26, 27}),
        (28, 5, 0.1, {0, 1, 2, 7, 12, 17, 22, 26, 27}),
        (1, 3, 0.14, {0}),
        (4, 3, 0.0, {0, 2, 3}),
        (6, 2, 0.0, {0, 2, 4, 5}),
        (3, 1, 0.14, {0, 1, 2}),
        (3, 9, 1.0, {0, 1, 2}),
        (2, 9, 0.0, {0, 1}),
    ],
)
def test_computed_steps_scale_with_the_total(total: int, every: int, share: float, steps: set[int]) -> None:
    assert computed_steps(total, every=every, warmup_share=share) == steps


@pytest.mark.parametrize(("order", "value"), [(0, 5.0), (1, 9.0)])
def test_velocities_are_extrapolated_over_sigma(order: Any, value: float) -> None:
    velocities = Velocities(order, corrects=False)
    for sigma, velocity in ((1.0, 100.0), (0.9, 3.0), (0.8, 5.0)):
        given = torch.tensor([velocity])
        assert velocities.computed(sigma, 0.0, given) is given
    assert velocities.skipped(0.6, 0.5).item() == pytest.approx(value)


def test_single_velocity_or_sigma_repeats_the_last() -> None:
    velocities = Velocities(1, corrects=False)
    velocities.computed(0.5, 0.5, torch.tensor([2.0]))
    assert velocities.skipped(0.4, 0.3).item() == 2
    velocities.computed(0.5, 0.5, torch.tensor([3.0]))
    assert velocities.skipped(0.4, 0.3).item() == 3
    velocities.computed(0.25, 0.2, torch.tensor([3.0], dtype=torch.bfloat16))
    assert velocities.skipped(0.1, 0.0).dtype == torch.bfloat16


@pytest.mark.parametrize("order", [0, 1])
def test_correction_is_exact_for_linear_velocities(order: Any) -> None:
    computed = {0, 2, 5}
    ends = [*SIGMAS[1:], 0.0]
    exact, guessed, corrected = ([torch.tensor([0.0])] for _ in range(3))
    plain, mended = Velocities(order, corrects=False), Velocities(order, corrects=True)
    for step, (sigma, until) in enumerate(zip(SIGMAS, ends, strict=True)):
        velocity = torch.tensor([3.0 - 4.0 * sigma])
        exact.append(exact[-1] + velocity * (until - sigma))
        for velocities, ways in ((plain, guessed), (mended, corrected)):
            given = (
                velocities.computed(sigma, until, velocity) if step in computed else velocities.skipped(sigma, until)
            )
            ways.append(ways[-1] + given * (until - sigma))
    for step in computed:
        assert corrected[step + 1].item() == pytest.approx(exact[step + 1].item(), abs=1e-6)
    # The first skipped step has one velocity before it, and is guessed wrongly whatever the order.
    assert abs(guessed[-1].item() - exact[-1].item()) > 0.05


def test_correction_is_applied_once() -> None:
    velocities = Velocities(0, corrects=True)
    velocities.computed(1.0, 0.8, torch.tensor([1.0]))
    velocities.skipped(0.8, 0.6)
    assert velocities.computed(0.6, 0.4, torch.tensor([3.0])).item() == pytest.approx(4)  # missed 1 at 0.8, over 0.2
    assert velocities.computed(0.4, 0.2, torch.tensor([3.0])).item() == 3
    assert velocities.skipped(0.2, 0.0).item() == 3


@cache
def _source() -> Any:
    return random_transformer(Shape())


def _schedule(computed: set[int], order: Any = 1, *, corrects: bool = False) -> Schedule:
    return Schedule(frozenset(computed), order, corrects)


def _run(
    engine: EngineTransformer, schedule: Schedule | None = None, samples: slice = slice(1)
) -> tuple[torch.Tensor, Branch]:
    """[steps, B, N, C]: images that drift from step to step, more so from sample to sample; and the branch that ran."""
    inputs = {
        name: value if name.endswith("ids") else value[samples]
        for name, value in inputs_for(_source(), batch=3).items()
    }
    image, text = inputs["hidden_states"], inputs["encoder_hidden_states"]
    branch = Branch(engine, prepare(engine, inputs, timesteps=SIGMAS), (*SIGMAS, 0.0), schedule)
    drift = torch.randn((3, *image.shape[1:]), generator=torch.Generator().manual_seed(5))
    drift *= torch.tensor([0.1, 0.5, 2.0])[:, None, None]
    drift[:, 15:] = 0
    return torch.stack([branch.step(i, image + (1 - s) * drift[samples], text) for i, s in enumerate(SIGMAS)]), branch


@pytest.fixture
def engine() -> Any:
    with engine_on(_source()) as made:
        yield made


def test_branch_without_schedule_computes_every_step(engine: EngineTransformer) -> None:
    plain, branch = _run(engine)
    assert branch.kinds == ["full"] * 6
    every, branch = _run(engine, _schedule(set(range(6)), corrects=True))
    assert branch.kinds == ["full"] * 6
    assert torch.equal(every, plain)


@pytest.mark.parametrize("order", [0, 1])
def test_branch_extrapolates_skipped_steps(engine: EngineTransformer, order: Any) -> None:
    plain, _ = _run(engine)
    result, branch = _run(engine, _schedule({0, 2, 5}, order))
    assert branch.kinds == ["full", "skipped", "full", "skipped", "skipped", "full"]
    for computed in (0, 2, 5):
        assert torch.equal(result[computed], plain[computed])
    assert torch.equal(result[1], plain[0])
    ratio = (SIGMAS[4] - SIGMAS[2]) / (SIGMAS[2] - SIGMAS[0])
    line = plain[2] + order * ratio * (plain[2] - plain[0])
    torch.testing.assert_close(result[4], line, rtol=0, atol=1e-5)


def test_branch_corrects_at_the_next_computed_step(engine: EngineTransformer) -> None:
    plain, _ = _run(engine)
    result, _ = _run(engine, _schedule({0, 2, 5}, 0, corrects=True))
    between = (SIGMAS[0] - SIGMAS[1]) / (SIGMAS[0] - SIGMAS[2])
    missed = between * (plain[2] - plain[0]) * (SIGMAS[2] - SIGMAS[1])
    torch.testing.assert_close(result[2], plain[2] + missed / (SIGMAS[3] - SIGMAS[2]), rtol=0, atol=1e-5)
    assert torch.equal(result[1], plain[0])


def test_sample_of_a_batch_equals_the_sample_alone(engine: EngineTransformer) -> None:
    schedule = _schedule({0, 2, 3}, corrects=True)
    together, branch = _run(engine, schedule, slice(3))
    assert branch.kinds == ["full", "skipped", "full", "full", "skipped", "skipped"]
    for sample in range(3):
        alone, _ = _run(engine, schedule, slice(sample, sample + 1))
        torch.testing.assert_close(together[:, sample : sample + 1], alone, rtol=0, atol=1e-4)


def test_text_is_embedded_again_only_when_it_changes(engine: EngineTransformer) -> None:
    inputs = inputs_for(_source())
    image, text = inputs["hidden_states"], inputs["encoder_hidden_states"].clone()
    branch = Branch(engine, prepare(engine, inputs, timesteps=SIGMAS), (*SIGMAS, 0.0))
    embedded: list[torch.Tensor] = []
    embed = engine.embed_text
    engine.embed_text = lambda text: embedded.append(text) or embed(text)  # type: ignore[method-assign, func-returns-value]
    first = [branch.step(index, image, text) for index in range(2)]
    assert len(embedded) == 1
    text *= 2
    in_place = branch.step(1, image, text)
    assert len(embedded) == 2
    assert not torch.equal(in_place, first[1])
    assert torch.equal(branch.step(1, image, text.clone()), in_place)
    assert len(embedded) == 3
    with torch.inference_mode():
        uncounted = text.clone()
        for index in range(2):
            branch.step(index, image, uncounted)
    assert len(embedded) == 5
