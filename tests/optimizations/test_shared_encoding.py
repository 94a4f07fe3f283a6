"""Which encoders run in which process, and what each gives to the others, seen from one of two processes.

What the other one sends is made up here; `test_several_gpus.py` runs real processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxPipeline
from torch import Tensor

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.call_tracking import CallTracker
from kontext_fast.optimizations.shared_encoding import SharedEncoding

SENT = 7
"""Each byte that comes from the other process."""


class OfTwo:
    """One of two processes, of which the other says and sends the same."""

    def __init__(self, rank: int) -> None:
        self.rank, self.device = rank, torch.device("cpu")
        self.known_elsewhere = True
        self.agreed: list[str] = []
        self.broadcast_of: list[tuple[int, tuple[int, ...]]] = []
        self.image_of_the_other: Tensor | None = None
        self._in_step = False

    def everywhere(self, holds: bool) -> bool:
        return holds and self.known_elsewhere

    def agree(self, doing: str) -> None:
        self.agreed.append(doing)

    @contextmanager
    def step(self) -> Iterator[None]:
        self._in_step = True
        yield
        self._in_step = False

    def sampled(self, tensors: list[Tensor]) -> Tensor:
        assert self._in_step
        own = tensors[0].reshape(1, -1).float()
        other = own if self.image_of_the_other is None else self.image_of_the_other.reshape(1, -1).float()
        return torch.stack([own, other])

    def broadcast(self, tensor: Tensor, src: int) -> None:
        assert self._in_step
        assert tensor.dtype == torch.uint8
        self.broadcast_of.append((src, tuple(tensor.shape)))
        if src != self.rank:
            tensor.fill_(SENT)


class Encodes(FluxKontextPipeline):  # type: ignore[misc]
    """Of a pipeline the two encoders, which count how often they ran."""

    def __init__(self) -> None:
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        self.ran: list[str] = []

    def encode_prompt(
        self,
        prompt: Any,
        prompt_2: Any = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: Any = None,
        max_sequence_length: int = 4,
    ) -> tuple[Tensor, Tensor]:
        self.ran.append("text")
        rows = num_images_per_prompt * (1 if isinstance(prompt, str) else len(prompt))
        # Transposed, as some encoders give theirs.
        return torch.ones(max_sequence_length, rows).t(), torch.ones(rows, 2, dtype=torch.bfloat16)

    def _encode_vae_image(self, image: Tensor, generator: Any = None) -> Tensor:
        self.ran.append("image")
        return image * (2 if generator is None else generator)


PHOTO = torch.ones(1, 3, 2, 2)


class Process:
    """One of two, with a pipeline whose encoders are shared."""

    def __init__(self, rank: int, undo: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ranks: Any = OfTwo(rank)
        monkeypatch.setattr(torch.distributed, "broadcast", self.ranks.broadcast)
        self.pipe, self.calls = Encodes(), CallTracker()
        self.encoding = SharedEncoding(self.ranks, self.calls)
        self.calls.attach(self.pipe)
        undo.callback(self.calls.detach, self.pipe)
        self.encoding.install(self.pipe, undo)

    def edit(
        self, prompt: Any = "red", image: Any = PHOTO, in_call: dict[str, Any] | None = None, **options: Any
    ) -> tuple[list[str], list[Tensor]]:
        """Which encoders ran here, and what was encoded; the call has an image unless `in_call` says otherwise."""
        self.pipe.ran.clear()
        with self.calls.open(self.pipe, {"image": image} if in_call is None else in_call):
            texts = self.pipe.encode_prompt(prompt, **options)
            latents = self.pipe._encode_vae_image(image, generator=3)
            call = self.calls.current
            assert call is not None
            self.encoding.exchange(call)  # as before the first step, whether or not there is anything left
            self.encoding.require_alike(call)
        return list(self.pipe.ran), [*texts, latents]


@pytest.fixture(params=[0, 1])
def process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    with ExitStack() as undo:
        yield Process(request.param, undo, monkeypatch)


BOTH = ["text", "image"]


def test_first_edit_of_a_size_is_encoded_whole_and_later_ones_in_part(process: Process) -> None:
    ran, alone = process.edit()
    assert (ran, process.ranks.broadcast_of) == (BOTH, [])
    assert torch.equal(alone[2], PHOTO * 3)
    ran, shared = process.edit()
    assert ran == [BOTH[process.ranks.rank]]
    # The bytes of two tensors from rank 0, and of one from rank 1; each once.
    assert process.ranks.broadcast_of == [(0, (1, 16)), (0, (1, 4)), (1, (1, 3, 2, 8))]
    for index, (before, now) in enumerate(zip(alone, shared, strict=True)):
        assert (now.shape, now.dtype, now.device) == (before.shape, before.dtype, before.device)
        if process.ranks.rank == (0 if index < 2 else 1):
            assert torch.equal(now, before)
        else:
            assert (now.contiguous().view(torch.uint8) == SENT).all()


def test_what_another_process_encodes_comes_to_the_device_of_this_one(process: Process) -> None:
    process.edit()
    process.ranks.device = torch.device("meta")
    on_device = [tensor.device.type for tensor in process.edit()[1]]
    assert on_device == (["cpu", "cpu", "meta"] if process.ranks.rank == 0 else ["meta", "meta", "cpu"])


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": ["red", "blue"]},
        {"num_images_per_prompt": 2},
        {"max_sequence_length": 8},
        {"image": torch.ones(1, 3, 4, 4)},
        {"image": PHOTO.double()},
    ],
    ids=["prompts", "images of a prompt", "tokens", "pixels", "precision"],
)
def test_sizes_that_are_new_are_encoded_everywhere(process: Process, options: dict[str, Any]) -> None:
    process.edit()
    new = "image" if "image" in options else "text"
    assert new in process.edit(**options)[0]
    assert process.edit(**options)[0] == [BOTH[process.ranks.rank]]


def test_other_prompts_and_images_of_a_size_are_encoded_in_part(process: Process) -> None:
    process.edit()
    for prompt in ("green", ["blue"]):
        assert process.edit(prompt, image=-PHOTO)[0] == [BOTH[process.ranks.rank]]


def test_size_that_another_process_does_not_know_is_encoded_everywhere(process: Process) -> None:
    process.edit()
    process.ranks.known_elsewhere = False
    assert process.edit()[0] == BOTH
    assert process.ranks.broadcast_of == []


def test_what_the_other_process_cannot_know_is_not_shared(process: Process) -> None:
    process.edit()
    assert process.edit(prompt_embeds=torch.ones(1))[0] == BOTH
    for arguments in ({}, {"image": None}):
        assert process.edit(in_call=arguments)[0] == BOTH
    assert process.edit(in_call={}, num_images_per_prompt=2)[1][0].shape == (2, 4)
    process.pipe.ran.clear()
    process.pipe.encode_prompt("red")
    process.pipe._encode_vae_image(image=PHOTO)
    assert process.pipe.ran == BOTH
    process.encoding.ranks = None
    assert process.edit()[0] == BOTH
    assert process.ranks.broadcast_of == []


def test_prompts_and_sizes_are_agreed_on(process: Process) -> None:
    process.edit()
    assert process.ranks.agreed == []
    edits: list[dict[str, Any]] = [
        {}, {"prompt": "blue"}, {"prompt_2": "in oil"}, {"prompt": ["red"]}, {"max_sequence_length": 8},
        {"image": torch.ones(1, 3, 4, 4)},
    ]  # fmt: skip
    said: set[str] = set()
    for options in edits:
        process.edit(**options)
        process.ranks.agreed.clear()
        for _ in range(2):
            process.edit(**options)
        first, second = process.ranks.agreed
        assert first == second
        said.add(first)
    assert len(said) == len(edits)


def test_edit_of_different_images_is_refused_when_it_has_begun(process: Process) -> None:
    process.edit()
    process.ranks.image_of_the_other = PHOTO
    process.edit()
    process.ranks.image_of_the_other = -PHOTO
    with pytest.raises(InvalidInput, match="different images, prompts or seeds"):
        process.edit()


def test_negative_prompt_is_encoded_with_the_other(process: Process) -> None:
    """Under true CFG a call encodes two prompts before its image."""

    def edit() -> list[str]:
        process.pipe.ran.clear()
        with process.calls.open(process.pipe, {"image": PHOTO}):
            first, second = process.pipe.encode_prompt("red")[0], process.pipe.encode_prompt("blurry")[0]
            process.pipe._encode_vae_image(image=PHOTO)
        assert first.shape == second.shape
        return list(process.pipe.ran)

    edit()
    process.ranks.agreed.clear()
    process.ranks.broadcast_of.clear()
    assert edit() == (["text", "text"] if process.ranks.rank == 0 else ["image"])
    assert [source for source, _ in process.ranks.broadcast_of] == [0, 0, 0, 0, 1]
    assert "red" in process.ranks.agreed[0]
    assert "blurry" in process.ranks.agreed[0]


def test_other_pipelines_encode_for_themselves() -> None:
    calls = CallTracker()
    pipe: Any = object.__new__(FluxPipeline)
    with ExitStack() as undo:
        SharedEncoding(OfTwo(0), calls).install(pipe, undo)  # type: ignore[arg-type]
        assert not calls._members


def test_encoders_are_as_before_once_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as undo:
        process = Process(0, undo, monkeypatch)
        assert process.pipe.encode_prompt.__func__ is not Encodes.encode_prompt
    assert process.pipe.encode_prompt.__func__ is Encodes.encode_prompt
    assert type(process.pipe) is Encodes
