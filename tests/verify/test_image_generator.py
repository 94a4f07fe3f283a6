"""How the items of an arm share calls, and what comes of those that fail, on a pipeline of one block of each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import kontext_fast.pipeline.edit
from kontext_fast.errors import Cancelled, OutOfMemory
from kontext_fast.pipeline.edit import EditRequest
from kontext_fast.pipeline.edit_many import LAUNCH_BOUND_BATCH, LAUNCH_BOUND_PARAMETERS
from kontext_fast.pipeline.load import loaded_checkpoint
from kontext_fast.records.schema import Arm
from kontext_fast.verify.arm_pipeline import ArmPipeline
from kontext_fast.verify.arms import ArmSpec, Batch
from kontext_fast.verify.image_generator import (
    MAX_FAILURES,
    TIMED_EDITS,
    WARM_UP_EDITS,
    ImageGenerator,
    ItemOutputs,
)
from tests.metrics.cases import FreeItem
from tests.pipelines import picture, small_pipeline

Edit = Callable[[Any, Sequence[EditRequest]], Any]
SEEDS = (3, 4)
ITEMS = tuple(FreeItem(id=f"item {index}", instruction=f"make it {index}", image=picture(index)) for index in range(3))


@pytest.fixture(scope="module")
def pipeline() -> Iterator[ArmPipeline]:
    pipe = small_pipeline()
    loaded = loaded_checkpoint(pipe, name="small", kind="pipeline", weights_sha256=None, dtype=torch.float32)
    arms = ArmPipeline(nullcontext(loaded), torch.device("cpu"))
    yield arms
    arms.release()


@pytest.fixture
def generator(pipeline: ArmPipeline) -> ImageGenerator:
    return ImageGenerator(pipeline, seeds=SEEDS, guidance=3.5, images_per_call=None)


def spec_of(items: Sequence[Any] = ITEMS, images_per_call: int = 6, **changes: Any) -> ArmSpec:
    arm = Arm(name="baseline", role="baseline")
    return ArmSpec(arm=arm, items=tuple(items), separate=0, steps=1, images_per_call=images_per_call, **changes)


def generated(generator: ImageGenerator, spec: ArmSpec, batches: Sequence[Batch]) -> list[ItemOutputs]:
    return [result for results in generator.generate(spec, batches, image_hash) for result in results]


def image_hash(image: Any) -> str:
    """A name of what is in a picture."""
    return f"{int(np.asarray(image, np.int64).sum()):064d}"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[EditRequest]]:
    """The requests of every call of the pipeline."""
    requests: list[list[EditRequest]] = []
    edit = kontext_fast.pipeline.edit.edit_together

    def counting(pipe: Any, of_call: Sequence[EditRequest]) -> Any:
        requests.append(list(of_call))
        return edit(pipe, of_call)

    monkeypatch.setattr("kontext_fast.pipeline.edit.edit_together", counting)
    return requests


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Sequence[EditRequest]], Exception | None]], None]:
    """Makes calls fail with what a rule says of their requests."""

    def install(rule: Callable[[Sequence[EditRequest]], Exception | None]) -> None:
        edit: Edit = kontext_fast.pipeline.edit.edit_together

        def edit_or_fail(pipe: Any, requests: Sequence[EditRequest]) -> Any:
            if (error := rule(requests)) is not None:
                raise error
            return edit(pipe, requests)

        monkeypatch.setattr("kontext_fast.pipeline.edit.edit_together", edit_or_fail)

    return install


@pytest.mark.parametrize(
    ("parameters", "device", "seeds", "images", "expected"),
    [
        (LAUNCH_BOUND_PARAMETERS - 1, "cuda", 2, None, LAUNCH_BOUND_BATCH),
        (LAUNCH_BOUND_PARAMETERS - 1, "cuda", 3, None, LAUNCH_BOUND_BATCH - LAUNCH_BOUND_BATCH % 3),
        (LAUNCH_BOUND_PARAMETERS, "cuda", 2, None, 2),
        (LAUNCH_BOUND_PARAMETERS - 1, "cpu", 2, None, 2),
        (LAUNCH_BOUND_PARAMETERS - 1, "cpu", 3, 8, 6),
        (LAUNCH_BOUND_PARAMETERS - 1, "cpu", 3, 3, 3),
        (LAUNCH_BOUND_PARAMETERS - 1, "cpu", 3, 2, 2),
    ],
)
def test_call_takes_whole_items_unless_seeds_do_not_fit(
    parameters: int, device: str, seeds: int, images: int | None, expected: int
) -> None:
    where: Any = SimpleNamespace(facts=SimpleNamespace(transformer_parameters=parameters), device=torch.device(device))
    generator = ImageGenerator(where, seeds=range(seeds), guidance=2.5, images_per_call=images)
    assert generator.images_per_call == expected


@pytest.mark.parametrize(
    ("device", "fitting", "tried", "left"),
    [("cuda", 5, [16, 8, 4], 4), ("cuda", 0, [16, 8, 4, 2], 1), ("cpu", 0, [], 16)],
)
def test_images_per_call_are_halved_until_memory_holds_them(
    device: str, fitting: int, tried: list[int], left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[EditRequest] = []

    def edit(pipe: Any, request: EditRequest) -> None:
        assert pipe == "the pipeline"
        requests.append(request)
        if request.batch > fitting:
            raise OutOfMemory("The GPU memory ran out; free some.")

    monkeypatch.setattr("kontext_fast.pipeline.edit.edit", edit)
    where: Any = SimpleNamespace(pipe="the pipeline", facts=None, device=torch.device(device))
    generator = ImageGenerator(where, seeds=SEEDS, guidance=2.5, images_per_call=16)
    generator.fit_memory(ITEMS[1])
    assert generator.images_per_call == left
    assert [request.batch for request in requests] == tried
    assert {(request.steps, request.seed, request.instruction) for request in requests} <= {(1, 3, "make it 1")}
    assert all(np.array_equal(request.image, ITEMS[1].image) for request in requests)


def test_items_of_one_size_share_a_batch(generator: ImageGenerator) -> None:
    wide = replace(ITEMS[0], id="wide", image=picture(5).resize((128, 64)))
    unusable = [replace(ITEMS[0], id=f"thin {index}", image=picture(5).resize((2, 90))) for index in range(2)]
    spec = spec_of([ITEMS[0], wide, *unusable, ITEMS[1], ITEMS[2]], images_per_call=4)
    expected = [(0, 4), (5,), (1,), (2,), (3,)]
    assert generator.batches(spec) == expected
    assert generator.batches(replace(spec, reverse_order=True)) == expected[::-1]
    assert generator.batches(replace(spec, images_per_call=1)) == [(index,) for index in range(6)]


def test_outputs_belong_to_their_items_and_seeds(generator: ImageGenerator, calls: list[list[EditRequest]]) -> None:
    results = generated(generator, spec_of(), [(2, 0)])
    assert [[(request.instruction, request.seed) for request in call] for call in calls] == [
        [("make it 2", 3), ("make it 2", 4), ("make it 0", 3), ("make it 0", 4)]
    ]
    assert {(request.steps, request.guidance, request.negative, request.true_cfg) for request in calls[0]} == {
        (1, 3.5, None, 1.0)
    }
    for request, index in zip(calls[0], (2, 2, 0, 0), strict=True):
        assert request.image is not None
        assert np.array_equal(request.image, ITEMS[index].image)
    assert [result.item for result in results] == [ITEMS[2], ITEMS[0]]
    # The same edits one by one, which round otherwise.
    alone = generated(generator, spec_of(images_per_call=1), [(0,), (2,)])
    assert [len(call) for call in calls[1:]] == [1] * 4
    for result, other in zip(results, alone[::-1], strict=True):
        assert [(output.item, output.seed, output.failure) for output in result.outputs] == [
            (result.item.id, seed, None) for seed in SEEDS
        ]
        assert [output.step_kinds for output in result.outputs] == [("full",)] * 2
        assert {output.image for output in result.outputs}.isdisjoint({None})
        assert list(result.latents) == list(SEEDS)
        for seed in SEEDS:
            assert result.latents[seed].shape[1:] == (16, 16)
            np.testing.assert_allclose(result.latents[seed], other.latents[seed], atol=1e-3)
        assert np.abs(result.latents[3] - result.latents[4]).max() > 0.1


def test_arm_changes_instructions_and_negatives(generator: ImageGenerator, calls: list[list[EditRequest]]) -> None:
    generated(generator, spec_of(instructions=("a", "b", "c"), negatives=("x", "y", "z")), [(1,)])
    assert [(request.instruction, request.negative, request.true_cfg) for request in calls[0]] == [("b", "y", 2.0)] * 2


def test_item_that_fails_spares_the_others(generator: ImageGenerator, failing: Any) -> None:
    failing(lambda requests: ValueError("no /root/blue  here") if any("1" in r.instruction for r in requests) else None)
    results = generated(generator, spec_of(), [(0, 1, 2)])
    assert [result.item for result in results] == list(ITEMS)
    failures = [[output.failure for output in result.outputs] for result in results]
    assert failures[0] == failures[2] == [None, None]
    assert failures[1][0] == failures[1][1]
    assert str(failures[1][0]).startswith("ValueError: no ")
    assert str(failures[1][0]).endswith(" here")
    assert "/root" not in str(failures[1][0])
    assert [(output.item, output.seed, output.image) for output in results[1].outputs] == [
        ("item 1", 3, None),
        ("item 1", 4, None),
    ]


@pytest.mark.parametrize(
    ("error", "failure"),
    [(RuntimeError("it broke"), "RuntimeError: it broke"), (OutOfMemory("Full; free some."), None)],
)
def test_batch_that_fails_alone_is_noted_unless_it_was_large(
    error: Exception, failure: str | None, generator: ImageGenerator, failing: Any
) -> None:
    failing(lambda requests: error if len(requests) > 2 else None)
    results = generated(generator, spec_of(), [(0, 1)])
    outputs = [output for result in results for output in result.outputs]
    assert [output.failure for output in outputs] == [failure] * 4
    assert all(output.image for output in outputs)


def test_arm_that_only_fails_is_given_up(generator: ImageGenerator, failing: Any) -> None:
    tried: list[str] = []

    def rule(requests: Sequence[EditRequest]) -> Exception | None:
        tried.append(requests[0].instruction)
        return None if "good" in tried[-1] else OutOfMemory(f"Full in call {len(tried)}; free some.")

    failing(rule)
    items = [replace(ITEMS[0], id=str(index), instruction=f"bad {index}") for index in range(2 * MAX_FAILURES + 3)]
    items[1] = replace(items[1], instruction="good")
    results = generated(generator, spec_of(items), [(index,) for index in range(len(items))])
    # The second item shows that the arm works: the count begins again.
    assert len(tried) == 2 + MAX_FAILURES
    assert [result.item.id for result in results] == [item.id for item in items]
    assert [output.failure for output in results[-1].outputs] == [f"Full in call {len(tried)}; free some."] * 2
    assert [bool(output.image) for output in results[1].outputs] == [True, True]


def test_cancelling_ends_the_arm_at_once(generator: ImageGenerator, failing: Any) -> None:
    tried: list[int] = []

    def rule(requests: Sequence[EditRequest]) -> Exception | None:
        tried.append(len(requests))
        return Cancelled("Stopped.")

    failing(rule)
    with pytest.raises(Cancelled):
        generated(generator, spec_of(), [(0, 1), (2,)])
    assert tried == [4]


def test_warm_up_is_not_timed_and_items_take_turns(generator: ImageGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    clock = 0.0

    def edit(pipe: Any, request: EditRequest) -> None:
        nonlocal clock
        assert pipe is generator._pipeline.pipe
        clock += 2.0 ** len(events)
        events.append(f"{request.instruction} {request.seed}")

    monkeypatch.setattr("kontext_fast.pipeline.edit.edit", edit)
    monkeypatch.setattr("kontext_fast.verify.image_generator.perf_counter", lambda: clock)
    monkeypatch.setattr(generator._pipeline, "synchronize", lambda: events.append("wait"))
    times = generator.time_edits(spec_of())
    edits = [f"make it {index} 3" for index in (0, 0, 0, 1, 2, 0, 1, 2, 0)]
    assert events == [event for of_edit in edits for event in ("wait", of_edit, "wait")]
    assert len(edits) == WARM_UP_EDITS + TIMED_EDITS
    assert times == tuple(2.0 ** (1 + 3 * count) for count in range(WARM_UP_EDITS, len(edits)))
