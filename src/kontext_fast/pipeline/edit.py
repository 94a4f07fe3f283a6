"""The single call path of an edit: everything that runs a pipeline runs it through `edit`.

It passes `FluxKontextPipeline` sizes that the pipeline does not change, and inputs that it cannot misread.
"""

from __future__ import annotations

import html
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, overload

from kontext_fast.discovery import unknown_name
from kontext_fast.errors import Cancelled, InvalidInput, Refused
from kontext_fast.pipeline.device import memory_errors
from kontext_fast.pipeline.images import STITCHED, data_url, to_rgb
from kontext_fast.pipeline.sizes import Size, SizePlan, check_requested_size, plan_size

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from kontext_fast.records.schema import StepKind

STEP_KINDS = "_kontext_fast_step_kinds"
"""Attribute of an accelerated pipeline: per step of its last call the kind of each sample of the batch, or one kind for
all of them. A pipeline without it computes every step in full."""

CAUTIONS = "_kontext_fast_cautions"
"""Attribute of an accelerated pipeline: what must be said beside the result of its last call, one sentence each."""

OF_FIRST_PROCESS = "_kontext_fast_of_first_process"
"""Attribute of a pipeline that several processes run together: (value) -> the value of the first of them."""

_MAX_TEXT_TOKENS = 512
"""The pipeline refuses more."""

MAX_STEPS = 1000
"""The schedule has no more distinct times."""

DIFFUSERS_NAMES: Final[Mapping[str, str]] = {
    "prompt": "instruction",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "negative_prompt": "negative",
    "true_cfg_scale": "true_cfg",
    "num_images_per_prompt": "batch",
    "generator": "seed",
}
"""What arguments of the pipeline are called in `EditRequest`."""

_SEED_LIMIT = 2**63
_DRAWN_SEED_LIMIT = 2**32


@dataclass(frozen=True)
class EditRequest:
    """One instruction and how to follow it, valid as far as that does not depend on the checkpoint.

    Raises InvalidInput on creation, for an image that cannot be read, too.
    """

    instruction: str
    image: Any = None
    """Anything that `images.to_rgb` takes, which the request holds as an upright RGB image; None for text-to-image."""
    steps: int = 28
    guidance: float = 2.5
    seed: int | None = None
    """Of the first image of the batch; each further image has the next one. None draws one."""
    negative: str | None = None
    true_cfg: float = 1.0
    """Above 1 every step runs the transformer a second time, on `negative`, and moves away from what that gives."""
    size: Size | None = None
    """(width, height) of the output in pixels; None for the native area in the aspect of the input."""
    batch: int = 1
    """Number of images."""

    def __post_init__(self) -> None:
        if not isinstance(self.instruction, str) or not self.instruction.strip():
            raise InvalidInput('The instruction is empty; say what to change, for example "make the car red".')
        if not _is_count(self.steps) or self.steps > MAX_STEPS:
            raise InvalidInput(f"The number of steps is {self.steps}; give a whole number from 1 to {MAX_STEPS}.")
        if not _is_finite(self.guidance) or self.guidance < 0:
            raise InvalidInput(f"The guidance is {self.guidance}; give a number of at least 0, for example 2.5.")
        if not _is_count(self.batch):
            raise InvalidInput(f"The batch is {self.batch}; give a whole number of at least 1.")
        if self.size is not None:
            check_requested_size(self.size)
        self._check_seed()
        self._check_true_cfg()
        if self.image is not None:
            object.__setattr__(self, "image", to_rgb(self.image))

    def _check_seed(self) -> None:
        if self.seed is None:
            return
        highest = _SEED_LIMIT - self.batch
        if not isinstance(self.seed, int) or not 0 <= self.seed <= highest:
            raise InvalidInput(f"The seed is {self.seed}; give a whole number from 0 to {highest}.")

    def _check_true_cfg(self) -> None:
        if not _is_finite(self.true_cfg) or self.true_cfg < 1:
            raise InvalidInput(f"The true CFG scale is {self.true_cfg}; give a number of at least 1.")
        # The pipeline silently ignores either one without the other.
        if self.true_cfg > 1 and self.negative is None:
            raise InvalidInput("A true CFG scale above 1 needs a negative prompt; give one, or leave the scale at 1.")
        if self.negative is not None and self.true_cfg == 1:
            raise InvalidInput("A negative prompt needs a true CFG scale above 1; give one, for example 2.")

    def seeds(self) -> tuple[int, ...]:
        """One seed per image; without a seed, each call draws new ones."""
        first = secrets.randbelow(_DRAWN_SEED_LIMIT) if self.seed is None else self.seed
        return tuple(range(first, first + self.batch))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


@dataclass(frozen=True, repr=False)
class EditResult:
    """The images of one request, in the order of their seeds. A notebook shows them."""

    images: tuple[Image, ...]
    seeds: tuple[int, ...]
    size: SizePlan
    step_kinds: tuple[StepKind, ...]
    """Per step that ran, which a fitted solver may have fewer of than the request: skipped where every image of the
    request skipped it."""
    seconds: float
    """Wall time of the call, from prepared inputs to finished images; of the whole batch that the request was in."""
    cautions: tuple[str, ...] = ()
    """What must be said beside the images, one sentence each: the pipeline is used otherwise than it was tuned for."""

    @property
    def image(self) -> Image:
        """The first image."""
        return self.images[0]

    @property
    def computed_steps(self) -> int:
        """How many steps ran the transformer."""
        return sum(kind == "full" for kind in self.step_kinds)

    def __repr__(self) -> str:
        images = "" if len(self.images) == 1 else f"{len(self.images)} images, "
        seeds = ", ".join(map(str, self.seeds))
        return (
            f"EditResult({images}{self.size.width}x{self.size.height}, {self.seconds:.2f} s, "
            f"{self.computed_steps} of {len(self.step_kinds)} steps computed, seed {seeds})"
        )

    def _repr_html_(self) -> str:
        pictures = "".join(f'<img src="{data_url(image)}" alt="" style="max-width:100%">' for image in self.images)
        return f"<figure>{pictures}<figcaption>{html.escape(repr(self))}</figcaption></figure>"


@overload
def edit(
    pipe: Any,
    image: EditRequest,
    instruction: None = None,
    *,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> EditResult: ...


@overload
def edit(
    pipe: Any,
    image: Any,
    instruction: str,
    *,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    **options: Any,
) -> EditResult: ...


def edit(
    pipe: Any,
    image: Any,
    instruction: str | None = None,
    *,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    **options: Any,
) -> EditResult:
    """Edit `image` on a `FluxKontextPipeline` as `instruction` says; an image of None is text-to-image.

    `options` are the other fields of `EditRequest`: steps, guidance, seed, negative, true_cfg, size, batch. An
    `EditRequest` may stand in the place of image and instruction. The noise of each image is drawn on the CPU from its
    own seed, so it does not depend on the batch or the device.
    `on_step(done, total)` is called after every step. `should_stop()` is called before the first and after every step;
    where it returns True, Cancelled is raised. The pipeline is usable again after any error.
    Raises InvalidInput, OutOfMemory or Cancelled, and where weights or latents are not finite InvalidInput or Refused.
    """
    request = make_request(image, instruction, **options)
    return edit_together(pipe, [request], on_step=on_step, should_stop=should_stop)[0]


def make_request(image: Any, instruction: str | None = None, **options: Any) -> EditRequest:
    """The request of `edit(pipe, image, instruction, **options)`. Raises InvalidInput."""
    if isinstance(image, EditRequest):
        if instruction is not None or options:
            raise InvalidInput("An EditRequest holds instruction and options already; change them there.")
        return image
    known = [field.name for field in fields(EditRequest) if field.name not in ("image", "instruction")]
    for name in options:
        if name not in known:
            short = DIFFUSERS_NAMES.get(name)
            raise InvalidInput(f"{name} is called {short} here." if short else unknown_name("option", name, known))
    if instruction is None:
        raise InvalidInput('The instruction is missing; write edit(pipe, image, "make the car red").')
    if isinstance(image, str) and not isinstance(instruction, str):
        raise InvalidInput('The image comes first; write edit(pipe, image, "make the car red").')
    return EditRequest(instruction, image, **options)


def edit_together(
    pipe: Any,
    requests: Sequence[EditRequest],
    *,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[EditResult, ...]:
    """Run several requests as one batch in one call; each gets the same images as alone, within rounding.

    On a small checkpoint the time is that of kernel launches, so that a batch takes hardly longer than one edit.
    Requests may differ in image, instruction, negative prompt, seed and batch, and have to agree in everything else,
    the size that is really run included. Raises InvalidInput where they do not, and what `edit` raises.
    """
    seeds = _seeds(pipe, requests)
    size, images, seconds = _run(pipe, requests, seeds, on_step, should_stop)
    results, start = [], 0
    for request_seeds in seeds:
        samples = slice(start, start + len(request_seeds))
        kinds, cautions = _step_kinds(pipe, samples), getattr(pipe, CAUTIONS, ())
        results.append(EditResult(tuple(images[samples]), request_seeds, size, kinds, seconds, cautions))
        start = samples.stop
    return tuple(results)


def final_latents(
    pipe: Any,
    requests: Sequence[EditRequest],
    *,
    start: Tensor | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Tensor:
    """[B, N, C] what `edit_together` would decode, in the pipeline's precision and packing.

    `start` [B, N, C] are latents to begin with instead of the noise of the seeds. Raises what `edit_together` raises.
    """
    seeds = _seeds(pipe, requests)
    latents: Tensor = _run(pipe, requests, seeds, None, should_stop, latents=start, output_type="latent")[1]
    return latents


def _seeds(pipe: Any, requests: Sequence[EditRequest]) -> list[tuple[int, ...]]:
    """The seeds of each of `requests`; those that are drawn are the same in all processes of one edit."""
    seeds = [request.seeds() for request in requests]
    together = getattr(pipe, OF_FIRST_PROCESS, None)
    if together is None or all(request.seed is not None for request in requests):
        return seeds
    drawn = together(seeds)
    return [drawn[i] if request.seed is None else seeds[i] for i, request in enumerate(requests)]


def _run(
    pipe: Any,
    requests: Sequence[EditRequest],
    seeds: Sequence[Sequence[int]],
    on_step: Callable[[int, int], None] | None,
    should_stop: Callable[[], bool] | None,
    **more: Any,
) -> tuple[SizePlan, Any, float]:
    """The size, the images and the seconds of one call of the pipeline, with `more` arguments of its own."""
    import torch
    from diffusers import FluxPipeline

    if (text_only := isinstance(pipe, FluxPipeline)) and requests and requests[0].image is not None:
        raise InvalidInput(
            "This checkpoint makes images from text and reads none; use kontext generate, or a FLUX.1-Kontext "
            "checkpoint."
        )
    size = _common_size(pipe, requests)
    for request in requests:
        for name, text in (("instruction", request.instruction), ("negative prompt", request.negative)):
            if text is not None:
                _check_text(pipe, name, text)
    first = requests[0]

    finite: list[Tensor] = []

    def after_step(running: Any, index: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index + 1 == running.num_timesteps:
            # Looked at when the images are there, so that the device does not wait in between.
            finite.append(torch.isfinite(tensors["latents"]).all())
        if on_step is not None:
            on_step(index + 1, running.num_timesteps)
        _raise_if_stopped(should_stop, index + 1, running.num_timesteps)
        return {}

    _raise_if_stopped(should_stop, 0, first.steps)
    begin = time.perf_counter()
    of_kontext = {"max_area": size.width * size.height, "_auto_resize": False}
    with memory_errors(f"editing at {size.width}x{size.height}"), _hooks_freed_on_error(pipe), _no_progress_bar(pipe):
        images = pipe(
            **_inputs(requests, [_reference(request.image, size.reference_size) for request in requests]),
            **({} if text_only else of_kontext),
            true_cfg_scale=first.true_cfg,
            width=size.width,
            height=size.height,
            num_inference_steps=first.steps,
            guidance_scale=first.guidance,
            generator=[torch.Generator().manual_seed(seed) for request_seeds in seeds for seed in request_seeds],
            max_sequence_length=size.text_tokens,
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=["latents"],
            **more,
        ).images
        _check_finite(pipe, all(map(bool, finite)), images)
    return size, images, time.perf_counter() - begin


def _check_finite(pipe: Any, latents_are_finite: bool, images: Any) -> None:
    """Raise for outputs of weights or arithmetic that are not finite, which would be pictures of one color.

    InvalidInput names the weights; Refused says that they are not the reason.
    """
    one_color = isinstance(images, list) and any(_is_one_color(image) for image in images)
    if latents_are_finite and not one_color:
        return
    for name, component in pipe.components.items():
        for weight, values in component.named_parameters() if hasattr(component, "named_parameters") else ():
            # Weights that are offloaded have no values here, and eight bits cannot be asked.
            if values.is_floating_point() and not values.is_meta and not bool(values.float().isfinite().all()):
                raise InvalidInput(
                    f"The weights {weight} of {name} are not finite, so that every edit is empty; "
                    "download the checkpoint again, or use another LoRA or file."
                )
    if not latents_are_finite:
        raise Refused(
            "The edit overflowed: its latents are not finite, though all weights are; "
            "use the preset baseline, or a checkpoint in bfloat16 or float32."
        )


def _is_one_color(image: Image) -> bool:
    # The upper edge alone first, which tells most pictures at no cost.
    parts = (image.crop((0, 0, image.width, 1)), image)
    return all(len(set(band.getextrema())) == 1 for part in parts for band in part.convert("RGB").split())


def _step_kinds(pipe: Any, samples: slice) -> tuple[StepKind, ...]:
    """The kinds of the steps of the last call, for `samples`, a part of the batch.

    Raises RuntimeError if another number of steps was counted: the kinds would be those of another call.
    """
    steps = pipe.num_timesteps
    all_full: tuple[tuple[StepKind, ...], ...] = (("full",),) * steps
    kinds: Sequence[Sequence[StepKind]] = getattr(pipe, STEP_KINDS, all_full)
    if len(kinds) != steps:
        raise RuntimeError(f"the last edit ran {steps} steps, but its optimization reported {len(kinds)}")
    parts = (of_step if len(of_step) == 1 else of_step[samples] for of_step in kinds)
    return tuple(map(joint_kind, parts))


def joint_kind(kinds: Sequence[StepKind]) -> StepKind:
    """The kind of a step of several samples or passes: skipped where all of them skipped it."""
    return "full" if "full" in kinds else "skipped"


def _inputs(requests: Sequence[EditRequest], references: Sequence[Image | None]) -> dict[str, Any]:
    """Images and texts as arguments of the pipeline: of one request as any caller passes them, else one per image."""
    if len(requests) == 1:
        (request,), (reference,) = requests, references
        return {
            **({} if reference is None else {"image": reference}),
            "prompt": request.instruction,
            "negative_prompt": request.negative,
            "num_images_per_prompt": request.batch,
        }
    each = [index for index, request in enumerate(requests) for _ in range(request.batch)]
    return {
        **({} if requests[0].image is None else {"image": [references[index] for index in each]}),
        "prompt": [requests[index].instruction for index in each],
        "negative_prompt": None if requests[0].negative is None else [requests[index].negative for index in each],
    }


def _common_size(pipe: Any, requests: Sequence[EditRequest]) -> SizePlan:
    """The size of all `requests`. Raises InvalidInput where they cannot be one batch, or there is none."""
    if not requests:
        raise InvalidInput("There is no request; give at least one.")
    shared = {
        (request.steps, request.guidance, request.true_cfg, request.image is None, request.negative is None)
        for request in requests
    }
    plans = [plan_for(pipe, request.image.size if request.image else None, request.size) for request in requests]
    sizes = {(plan.size, plan.reference_size) for plan in plans}
    if len(shared) > 1 or len(sizes) > 1:
        raise InvalidInput(
            "Edits of one batch need the same steps, guidance, true CFG scale and size, and all of them an image and "
            "a negative prompt or none; run those that differ in another batch."
        )
    joined = requests[0].image.info.get(STITCHED) if requests[0].image else None
    if joined is None:
        return plans[0]
    width, height = requests[0].image.size
    told = f"{joined} images are joined side by side to {width}x{height}. {plans[0].explanation}"
    return replace(plans[0], explanation=told)


def plan_for(pipe: Any, image_size: Size | None, requested: Size | None) -> SizePlan:
    """What `edit` will run on `pipe` for an upright image of `image_size` (width, height). Raises InvalidInput."""
    native = pipe.vae.config.sample_size
    return plan_size(image_size, requested=requested, native=native, text_tokens=text_length(pipe))


def text_length(pipe: Any) -> int:
    """Tokens that every instruction is padded to."""
    return int(min(_MAX_TEXT_TOKENS, pipe.tokenizer_2.model_max_length))


def _check_text(pipe: Any, name: str, text: str) -> None:
    """Raise InvalidInput for a long text, which the pipeline would truncate."""
    length = len(pipe.tokenizer_2(text, verbose=False).input_ids)
    limit = text_length(pipe)
    if length > limit:
        raise InvalidInput(f"The {name} has {length} tokens and this checkpoint reads {limit}; shorten it.")


def _reference(image: Image | None, size: Size | None) -> Image | None:
    from PIL.Image import Resampling

    if image is None or size is None or image.size == size:
        return image
    return image.resize(size, Resampling.LANCZOS)


def _raise_if_stopped(should_stop: Callable[[], bool] | None, done: int, total: int) -> None:
    if should_stop is not None and should_stop():
        raise Cancelled(f"The edit was stopped after {done} of {total} steps; run it again to get the image.")


@contextmanager
def _hooks_freed_on_error(pipe: Any) -> Iterator[None]:
    """Let the pipeline move offloaded models back and reset caches, which it skips when a call ends early."""
    try:
        yield
    except BaseException:
        pipe.maybe_free_model_hooks()
        raise


@contextmanager
def _no_progress_bar(pipe: Any) -> Iterator[None]:
    """Disable the pipeline's own bar, since `on_step` reports progress; the user's settings are restored."""
    missing = object()
    before = getattr(pipe, "_progress_bar_config", missing)
    pipe._progress_bar_config = {**(before if isinstance(before, dict) else {}), "disable": True}
    try:
        yield
    finally:
        if before is missing:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before
