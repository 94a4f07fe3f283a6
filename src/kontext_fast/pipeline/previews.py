"""Previews of a running edit: what the image would be if the model were right at the current step.

A flow model's noisy latents are x = (1 - sigma) * clean + sigma * noise and its velocity is v = noise - clean, so that
x - sigma * v estimates the clean latents (Lipman et al., "Flow Matching for Generative Modeling", 2023). The scheduler
is given both at every step; they are read there and nothing is changed, so the image of the edit stays bit-identical.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kontext_fast.pipeline.sizes import Size

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

MOST_PREVIEWS = 3

AROUND = "_kontext_fast_around"
"""Attribute of a method that was put on a scheduler: makes that of the scheduler of a solver likewise."""


def preview_steps(steps: int, previews: int) -> tuple[int, ...]:
    """After how many of `steps` steps each of `previews` previews is made: evenly spread, never after the last step.

    An edit of few steps gets fewer previews.
    """
    after = {round(steps * index / (previews + 1)) for index in range(1, previews + 1)}
    return tuple(sorted(after & set(range(1, steps))))


@dataclass
class PreviewTime:
    """What previews have added to a call so far."""

    seconds: float = 0.0


@contextmanager
def watch_previews(
    pipe: Any, size: Size, previews: int, show: Callable[[int, tuple[Image, ...]], None]
) -> Iterator[PreviewTime]:
    """Inside the context, call `show(index of the preview, one RGB image per sample)` for each preview of a call.

    `size` is the (width, height) of its output in pixels. `pipe` may be accelerated; one call at a time.
    """
    scheduler, spent = pipe.scheduler, PreviewTime()
    done = 0

    def around(inner: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(inner)

        @functools.wraps(inner)
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            arguments = signature.bind(*args, **kwargs).arguments
            result = inner(*args, **kwargs)
            done += 1
            # A solver runs as many steps as it has, whatever was asked for, with a scheduler of its own.
            running = pipe.scheduler
            after = preview_steps(len(running.timesteps), previews)
            if done in after:
                start = time.perf_counter()
                sigma = float(arguments["timestep"]) / running.config.num_train_timesteps
                clean = clean_latents(arguments["sample"], arguments["model_output"], sigma)
                show(after.index(done), _decode(pipe, clean, size))
                spent.seconds += time.perf_counter() - start
            return result

        return step

    before = vars(scheduler).get("step")
    scheduler.step = around(scheduler.step)
    setattr(scheduler.step, AROUND, around)
    try:
        yield spent
    finally:
        if before is None:
            del scheduler.step
        else:
            scheduler.step = before


def clean_latents(noisy: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """The estimate x - sigma * v, computed in float32 and returned in the type of `noisy`."""
    return (noisy.float() - sigma * velocity.float()).to(noisy.dtype)


def _decode(pipe: Any, latents: Tensor, size: Size) -> tuple[Image, ...]:
    """Decode packed latents [B, tokens, channels] as the pipeline itself does."""
    width, height = size
    vae = pipe.vae
    unpacked = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
    unpacked = unpacked / vae.config.scaling_factor + vae.config.shift_factor
    return tuple(pipe.image_processor.postprocess(vae.decode(unpacked, return_dict=False)[0], output_type="pil"))
