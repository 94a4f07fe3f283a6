"""`gpus=`: an edit by several processes is that of one, and ends in all of them as it ends in one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import numpy as np
import pytest

from kontext_fast.errors import Cancelled, InvalidInput, KontextError
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.presets import PRESETS
from kontext_fast.optimizations.techniques.engine import engine_of
from kontext_fast.pipeline.edit import EditRequest, EditResult, edit, edit_together, final_latents
from kontext_fast.pipeline.load import load
from tests.pipelines import picture, small_pipeline
from tests.ranks import Ranks, ranks

INSTRUCTION = "make the background red"

_small = cache(small_pipeline)
"""The pipeline of a process."""


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    _small()  # read once, before the processes are forked
    with ranks(2) as processes:
        yield processes


def _request(**options: Any) -> EditRequest:
    defaults = {"instruction": INSTRUCTION, "image": picture(), "steps": 3, "seed": 1, "size": (64, 64)}
    return EditRequest(**{**defaults, **options})


def _distances(rank: int, preset: str, requests: list[EditRequest], by_passes: bool) -> tuple[list[float], list[str]]:
    """How far the latents of two processes are from those of this one alone; and the kinds of steps.

    Unless `by_passes`, they share both passes of true CFG, as other numbers of processes do.
    """
    pipe, distances, kinds = _small(), [], []
    for request in requests:
        with accelerate(pipe, preset, quiet=True):
            alone = final_latents(pipe, [request])
        with accelerate(pipe, preset, quiet=True, gpus=2) as acceleration:
            forward = engine_of(pipe.transformer)
            assert forward is not None
            assert forward.of_passes is not None
            forward.of_passes = forward.of_passes if by_passes else None
            shared = final_latents(pipe, [request])
            kinds = list(acceleration.last_step_kinds())
        distances.append(float((shared - alone).norm() / alone.norm()))
    return distances, kinds


@pytest.mark.parametrize("preset", ["faithful", "turbo"])
def test_latents_are_those_of_one_process(two: Ranks, preset: str) -> None:
    requests = [_request(steps=4), _request(batch=2, negative="blue", true_cfg=2.0, size=(48, 80), steps=4)]
    for distances, kinds in two.run(_distances, preset, requests, False):
        assert max(distances) < {"faithful": 1e-4, "turbo": 2e-2}[preset]
        assert ("skipped" in kinds) == (preset == "turbo")


@pytest.mark.parametrize("preset", ["faithful", "turbo"])
def test_passes_of_true_cfg_have_the_bits_of_one_process(two: Ranks, preset: str) -> None:
    """Each process runs one pass; skipped steps and batches are exchanged as well."""
    request = _request(batch=2, negative="blue", true_cfg=2.0, size=(48, 80), steps=4)
    for distances, kinds in two.run(_distances, preset, [request], True):
        assert distances == [0.0]
        assert ("skipped" in kinds) == (preset == "turbo")


def _encoders_run(rank: int, photos: list[int]) -> list[tuple[list[str], bool]]:
    """Of one edit of each of `photos`, which encoders ran here, and whether the images are those of one process."""
    pipe = _small()
    requests = [_request(image=picture(photo), batch=2, negative="blue", true_cfg=2.0) for photo in photos]
    with accelerate(pipe, "faithful", quiet=True):
        alone = [edit(pipe, request).images for request in requests]
    ran: list[str] = []
    outcomes = []
    with accelerate(pipe, "faithful", quiet=True, gpus=2), ExitStack() as hooks:
        for name, module in (("text", pipe.text_encoder_2), ("image", pipe.vae.encoder)):
            hook = module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
            hooks.callback(hook.remove)
        for request, expected in zip(requests, alone, strict=True):
            images = edit(pipe, request).images
            outcomes.append((sorted(set(ran)), all(map(np.array_equal, images, expected))))
            ran.clear()
    return outcomes


def test_text_and_image_are_encoded_in_different_processes(two: Ranks) -> None:
    """From the second edit of a size on; all images are those of one process."""
    photos = [0, 1, 2]
    first, second = two.run(_encoders_run, photos)
    assert first == [(["image", "text"], True), (["text"], True), (["text"], True)]
    assert second == [(["image", "text"], True), (["image"], True), (["image"], True)]


def _of_own_seed(rank: int) -> tuple[EditResult, EditResult]:
    pipe = _small()
    with accelerate(pipe, "faithful", quiet=True, gpus=2):
        return edit(pipe, _request(seed=None)), edit_together(pipe, [_request(seed=None), _request(seed=5)])[0]


def test_drawn_seeds_are_those_of_the_first_process(two: Ranks) -> None:
    first, second = two.run(_of_own_seed)
    for mine, other in zip(first, second, strict=True):
        assert mine.seeds == other.seeds
        assert np.array_equal(mine.image, other.image)
    assert first[0].seeds != first[1].seeds


def _with_own(rank: int, options: list[dict[str, Any]]) -> list[Any]:
    """The error of an edit for which each process has its own options, and the image of one that is alike after it."""
    pipe, outcomes = _small(), []
    with accelerate(pipe, "faithful", quiet=True, gpus=2):
        edit(pipe, _request())  # later ones encode for each other
        for request in (_request(**options[rank]), _request()):
            try:
                outcomes.append(edit(pipe, request).image)
            except KontextError as error:
                outcomes.append(error)
    return outcomes


@pytest.mark.parametrize(
    ("other", "said"),
    [({"seed": 2}, "different images, prompts or seeds"), ({"steps": 4}, "different edits"),
     ({"size": (48, 64)}, "different edits"), ({"image": picture(7)}, "different images, prompts or seeds"),
     ({"instruction": "make it blue"}, "different edits")],
    ids=["seed", "steps", "size", "image", "instruction"],
)  # fmt: skip
def test_different_edits_are_refused_in_all_processes(two: Ranks, other: dict[str, Any], said: str) -> None:
    first, second = two.run(_with_own, [{}, other])
    for error, image in (first, second):
        assert isinstance(error, InvalidInput)
        assert said in str(error)
        assert not isinstance(image, Exception)


def _stopped_by(rank: int, stopping: int, after: int) -> list[Any]:
    pipe, outcomes, steps = _small(), [], []
    with accelerate(pipe, "faithful", quiet=True, gpus=2):
        for stop in (lambda: rank == stopping and len(steps) == after, None):
            try:
                outcomes.append(
                    edit(pipe, _request(), on_step=lambda *step: steps.append(step), should_stop=stop).image
                )
            except KontextError as error:
                outcomes.append(error)
    return outcomes


@pytest.mark.parametrize(("stopping", "after"), [(0, 1), (1, 2), (1, 3)])
def test_edit_stopped_in_one_process_ends_in_all(two: Ranks, stopping: int, after: int) -> None:
    first, second = two.run(_stopped_by, stopping, after)
    for error, image in (first, second):
        assert isinstance(error, Cancelled)
        assert not isinstance(image, Exception)


def _edit_until_killed(rank: int) -> float:
    """Seconds from the death of the other process to the error here."""
    pipe, died = _small(), []

    def on_step(done: int, _total: int) -> None:
        if done == 2:
            died.append(time.monotonic())
            if rank:
                os.kill(os.getpid(), signal.SIGKILL)

    with accelerate(pipe, "faithful", quiet=True, gpus=2):
        with pytest.raises(KontextError, match="Another process of this edit has ended"):
            edit(pipe, _request(steps=6), on_step=on_step)
        with pytest.raises(KontextError, match="start all"):
            edit(pipe, _request())
    return time.monotonic() - died[0]


def test_killed_process_ends_the_others() -> None:
    with ranks(2) as processes:
        processes.start(_edit_until_killed)
        seconds = processes.result(0)
    assert isinstance(seconds, float), seconds
    assert seconds < 60  # gloo sees the closed connection at once; a hang would be the 10 minutes of its patience


def test_preset_without_the_engine_says_what_gpus_needs() -> None:
    with pytest.raises(InvalidInput, match="faithful"):
        PRESETS["baseline"].replace(gpus=2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_every_preset_with_the_engine_gives_the_same_image(size: int) -> None:
    presets = [name for name in PRESETS if any(part.name == "engine" for part in PRESETS[name].optimizations)]
    assert {"faithful", "precise", "balanced", "fast", "turbo", "tuned-7"} <= set(presets)
    with ranks(size) as processes:
        for by_preset in processes.run(_of_every_preset, size, presets):
            assert not isinstance(by_preset, Exception), by_preset
            assert set(by_preset) == set(presets)
            assert max(by_preset.values()) < 4, by_preset  # of 255, at the farthest pixel


def _of_every_preset(rank: int, size: int, presets: list[str]) -> dict[str, float]:
    pipe, farthest = load("tiny", device="cpu").pipe, {}
    request = EditRequest(INSTRUCTION, picture(), steps=8, seed=1)
    for preset in presets:
        images = []
        for gpus in (1, size):
            with accelerate(pipe, preset, quiet=True, gpus=gpus):
                images.append(np.asarray(edit(pipe, request).image, dtype=float))
        farthest[preset] = float(np.abs(images[0] - images[1]).max())
    return farthest
