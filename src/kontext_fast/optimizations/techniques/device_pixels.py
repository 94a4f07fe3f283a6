"""`device_pixels`: images go to the device and come back as 8-bit pixels, and are scaled there.

diffusers converts pictures to float32 and back in numpy, and copies 12 MB where 3 MB hold a picture of 1024x1024.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import track_calls

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class DevicePixels(Optimization):
    """Of pictures in RGB and for output as PIL images; everything else is converted as before, which is counted, as are
    images that a mask is laid over, since masks stay on the host.

    Input is looked up in a table of the 256 values that diffusers computes; output is rounded by the same operations.
    """

    name: ClassVar[str] = "device_pixels"
    summary: ClassVar[str] = "images are scaled on the device and cross as 8-bit pixels"
    effect: ClassVar[Effect] = Effect.EXACT
    phase: ClassVar[Phase] = Phase.REQUESTS

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Have every call of `pipe` use an image processor of its own around that of the pipeline.

        Facts: `read` and `written`, images that crossed as 8-bit pixels, and `as_before`, conversions by diffusers.
        """
        facts: Facts = {"read": 0, "written": 0, "as_before": 0}
        calls = track_calls(pipe, undo)
        table = _Table()

        def processor(running: Any) -> Any:
            original = vars(running)["image_processor"]
            if calls.current is None:
                return original
            masked = "mask_processor" in vars(running)
            return _PixelProcessor(original, lambda: table.on(_device(running)), facts, reads=not masked)

        def replace(running: Any, replacement: Any) -> None:
            vars(running)["image_processor"] = replacement

        calls.set_member("image_processor", lambda _: property(processor, replace), undo)
        return facts


def _device(pipe: Any) -> torch.device:
    """Where `pipe` encodes images. Asking the pipeline itself takes milliseconds."""
    weights = iter(()) if pipe.vae is None else pipe.vae.parameters()
    first = next(weights, None)
    device: torch.device = pipe._execution_device if first is None or first.is_meta else first.device
    return device


class _Table:
    """The float32 values in -1..1 of the pixels 0 to 255, as diffusers computes them, kept on each device."""

    def __init__(self) -> None:
        self._tables: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        import numpy as np
        import torch

        if device not in self._tables:
            values = torch.from_numpy(np.arange(256, dtype=np.float32) / 255.0)
            self._tables[device] = (2.0 * values - 1.0).to(device)
        return self._tables[device]


class _PixelProcessor:
    """A VaeImageProcessor whose pixels are scaled on the device of `table()`."""

    def __init__(self, original: Any, table: Callable[[], Tensor], facts: Facts, *, reads: bool) -> None:
        """`reads`: whether the pipeline takes images on the device; otherwise they are read as before."""
        self._original = original
        self._table = table
        self._facts = facts
        self._reads = reads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def preprocess(self, image: Any, height: Any = None, width: Any = None, **others: Any) -> Any:
        """[B, 3, H, W] in -1..1, float32, on the device for pictures in RGB; in memory the channels are innermost."""
        import numpy as np
        import torch

        pictures = image if isinstance(image, list) else [image]
        if others or not self._reads or not self._scales_plainly() or not pictures or not all(map(_is_rgb, pictures)):
            self._facts["as_before"] += 1
            return self._original.preprocess(image, height, width, **others)
        height, width = self._original.get_default_height_width(pictures[0], height, width)
        table = self._table()
        # In pinned memory, so that the host goes on while the device encodes text.
        host = torch.empty(len(pictures), height, width, 3, dtype=torch.uint8, pin_memory=table.is_cuda)
        for pixels, picture in zip(host.numpy(), pictures, strict=True):
            resized = picture if picture.size == (width, height) else self._original.resize(picture, height, width)
            pixels[:] = np.asarray(resized)
        self._facts["read"] += len(pictures)
        return table.take(host.to(table.device, non_blocking=True).long()).permute(0, 3, 1, 2)

    def postprocess(self, image: Any, output_type: str = "pil", do_denormalize: Any = None) -> Any:
        """PIL images for `output_type` pil; otherwise what diffusers returns."""
        import torch

        plain = output_type == "pil" and do_denormalize is None and self._scales_plainly()
        if plain and isinstance(image, torch.Tensor) and image.ndim == 4 and image.shape[1] == 3:
            scaled = self._original.denormalize(image)
            on_device = _pixels(scaled), scaled.isnan().any()
            # Before the device is waited for: it takes the host as long as filling them.
            pictures = _black_pictures(image)
            pixels, no_number = _to_host(*on_device)
            # numpy warns of what is no number, and so does diffusers.
            if not no_number:
                self._facts["written"] += len(image)
                for picture, data in zip(pictures, pixels.numpy(), strict=True):
                    # A copy, so that the buffer can be used again; of four bytes each, where three would be spread out.
                    picture.frombytes(data.data, "raw", "RGBX")
                return pictures
        self._facts["as_before"] += 1
        return self._original.postprocess(image, output_type, do_denormalize)

    def _scales_plainly(self) -> bool:
        """Whether the pipeline's processor has the options of FLUX, and no methods of somebody else."""
        from diffusers.image_processor import VaeImageProcessor

        config = self._original.config
        return (
            type(self._original) is VaeImageProcessor
            and not {"preprocess", "postprocess", "denormalize"} & set(vars(self._original))
            and config.do_resize
            and config.do_normalize
            and not config.do_binarize
            and not config.do_convert_grayscale
        )


def _is_rgb(image: Any) -> bool:
    from PIL.Image import Image

    return isinstance(image, Image) and image.mode == "RGB"


def _pixels(scaled: Tensor) -> Tensor:
    """[B, H, W, 4] uint8 of [B, 3, H, W] in 0..1: red, green, blue, and what Pillow puts beside them in memory."""
    import torch

    batch, _, height, width = scaled.shape
    pixels = torch.full((batch, height, width, 4), 255, dtype=torch.uint8, device=scaled.device)
    pixels[..., :3] = (scaled.permute(0, 2, 3, 1).float() * 255).round()
    return pixels


def _to_host(*tensors: Tensor) -> list[Tensor]:
    """Each in host memory; a GPU is waited for once."""
    import torch

    if not tensors[0].is_cuda:
        return [tensor.cpu() for tensor in tensors]
    host = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for target, source in zip(host, tensors, strict=True):
        target.copy_(source, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return host


def _black_pictures(like: Tensor) -> list[Any]:
    """PIL images in RGB, one for each of [B, 3, H, W]."""
    from PIL import Image

    batch, _, height, width = like.shape
    return [Image.new("RGB", (width, height)) for _ in range(batch)]
