"""How a fault gets into a pipeline: an optimization that declares to change rounding only, and does more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.patching import set_attribute
from kontext_fast.optimizations.presets import Preset

Plant = Callable[[Any, ExitStack], None]
"""Changes a pipeline and registers how to change it back."""
Picture = npt.NDArray[np.float32]
"""(height, width, 3) in 0..255."""


@dataclass
class Seen:
    """What a fault in pictures knows of the calls so far."""

    count: int = 0
    """Of pictures before this one."""
    before: Picture | None = None
    """The picture before this one, as it should have been."""


Spoil = Callable[[Picture, Picture, Seen], Picture]
"""From a finished picture, its input and what was seen before to the picture with a fault."""

HARMLESS = "harmless"


@dataclass(frozen=True)
class Fault:
    name: str
    family: str
    plant: Plant | Pictures

    @property
    def preset(self) -> Preset:
        """A preset of this fault alone."""
        plant = self.plant.plant if isinstance(self.plant, Pictures) else self.plant
        optimization = type("_Planted", (_Planted,), {"name": self.name, "plant": staticmethod(plant)})
        return Preset(self.name, f"planted fault: {self.family}", (optimization(),))


class _Planted(Optimization):
    name: ClassVar[str] = "planted"
    summary: ClassVar[str] = "faulty on purpose"
    effect: ClassVar[Effect] = Effect.NUMERIC
    phase: ClassVar[Phase] = Phase.WEIGHTS
    plant: ClassVar[Plant]

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        type(self).plant(pipe, undo)
        return {}


def around(owner: Any, method: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]], undo: ExitStack) -> None:
    """Replace a method by `wrap` of it."""
    set_attribute(owner, method, wrap(getattr(owner, method)), undo)


def forward(change: Callable[[Callable[..., Any], dict[str, Any], dict[str, Any]], Any]) -> Plant:
    """A fault in the transformer's forward; `change` gets the old one, the keywords of a call, and a memory."""

    def plant(pipe: Any, undo: ExitStack) -> None:
        memory: dict[str, Any] = {}

        def wrap(old: Callable[..., Any]) -> Callable[..., Any]:
            return lambda **inputs: change(old, inputs, memory)

        around(pipe.transformer, "forward", wrap, undo)

    return plant


def output_of(modules: Callable[[Any], list[Any]], change: Callable[[torch.Tensor], torch.Tensor]) -> Plant:
    """A fault in what some modules of the pipeline put out."""

    def plant(pipe: Any, undo: ExitStack) -> None:
        for module in modules(pipe):
            handle = module.register_forward_hook(lambda _, __, output: change(output))
            undo.callback(handle.remove)

    return plant


def weight_of(module: Callable[[Any], Any], change: Callable[[torch.Tensor], torch.Tensor]) -> Plant:
    """A fault in the weight of one layer."""

    def plant(pipe: Any, undo: ExitStack) -> None:
        weight = module(pipe).weight
        before = weight.data
        weight.data = change(before.clone())
        undo.callback(setattr, weight, "data", before)

    return plant


def latents(change: Callable[[list[torch.Generator]], list[torch.Generator]]) -> Plant:
    """A fault in the generators of noise of a call."""

    def plant(pipe: Any, undo: ExitStack) -> None:
        def wrap(old: Callable[..., Any]) -> Callable[..., Any]:
            def prepare(*inputs: Any, **named: Any) -> Any:
                return old(*(change(value) if _are_generators(value) else value for value in inputs), **named)

            return prepare

        around(pipe, "prepare_latents", wrap, undo)

    return plant


def _are_generators(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], torch.Generator)


@dataclass(frozen=True)
class Pictures:
    """A fault in finished pictures, which needs no model to be tried on pictures that exist."""

    spoil: Spoil

    def next(self, image: Image.Image, source: Picture, seen: Seen) -> Image.Image:
        """The next output with its fault."""
        picture = np.asarray(image.convert("RGB"), np.float32)
        spoiled = self.spoil(picture, source, seen)
        seen.count += 1
        seen.before = picture
        return _image(spoiled)

    def plant(self, pipe: Any, undo: ExitStack) -> None:
        seen, inputs = Seen(), list[Picture]()

        def remember(old: Callable[..., Any]) -> Callable[..., Any]:
            def prepare(image: torch.Tensor | None, batch_size: int, *rest: Any, **named: Any) -> Any:
                if image is not None:
                    shown = ((image.float().cpu().permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(np.float32)
                    inputs[:] = [shown[index * len(shown) // batch_size] for index in range(batch_size)]
                return old(image, batch_size, *rest, **named)

            return prepare

        def spoil(old: Callable[..., Any]) -> Callable[..., Any]:
            def postprocess(*values: Any, **named: Any) -> Any:
                images = old(*values, **named)
                return [self.next(image, source, seen) for image, source in zip(images, inputs, strict=True)]

            return postprocess

        around(pipe, "prepare_latents", remember, undo)
        around(pipe.image_processor, "postprocess", spoil, undo)


def every(count: int, spoil: Spoil) -> Pictures:
    """`spoil` in every so many pictures only, the first of them the last to come."""
    return Pictures(
        lambda picture, source, seen: spoil(picture, source, seen) if seen.count % count == count - 1 else picture
    )


def always(change: Callable[[Image.Image], Image.Image]) -> Pictures:
    """`change` in every picture."""
    return Pictures(lambda picture, source, seen: np.asarray(change(_image(picture)).convert("RGB"), np.float32))


def recoded(**options: Any) -> Callable[[Image.Image], Image.Image]:
    """A picture through a JPEG file."""

    def change(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", **options)
        return Image.open(BytesIO(file.getvalue())).convert("RGB")

    return change


def _image(picture: Picture) -> Image.Image:
    return Image.fromarray(np.clip(picture, 0, 255).round().astype(np.uint8))
