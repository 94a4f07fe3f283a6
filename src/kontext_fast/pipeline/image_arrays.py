"""Input images as arrays: what the numbers and axes of a numpy array or torch tensor mean, and the RGB image of them.

`FluxKontextPipeline` misreads some of these in silence, such as a tensor in 0..255.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kontext_fast.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_CHANNELS = (1, 2, 3, 4)
_LATENT_CHANNELS = 16
_ALPHA_CHANNELS = (2, 4)


def image_from_array(array: Any) -> Image:
    """An RGB image from a numpy array or torch tensor of one image; see `to_rgb` for what it takes."""
    values = _unit_range(_channels_last(*_to_numpy(array)))
    return scaled_image(values)


def scaled_image(values: np.ndarray[Any, Any]) -> Image:
    """An RGB image from floats in 0..1 of shape (height, width) or (height, width, 1 to 4 channels)."""
    import numpy as np
    from PIL import Image

    if values.ndim == 2:
        values = values[..., None]
    if values.shape[-1] in _ALPHA_CHANNELS:
        alpha = values[..., -1:]
        values = values[..., :-1] * alpha + (1 - alpha)
    levels = np.clip(values * 255, 0, 255).round().astype(np.uint8)
    return Image.fromarray(np.broadcast_to(levels, (*levels.shape[:2], 3)).copy())


def _to_numpy(array: Any) -> tuple[np.ndarray[Any, Any], bool]:
    """The values on the CPU, and whether the convention is channels first."""
    import numpy as np

    if not hasattr(array, "detach"):
        return np.asarray(array), False
    tensor = array.detach().cpu()
    # numpy has no bfloat16
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy(), True


def _channels_last(array: np.ndarray[Any, Any], channels_first: bool) -> np.ndarray[Any, Any]:
    import numpy as np

    shape = array.shape
    if array.ndim == 4:
        if shape[0] != 1:
            raise InvalidInput(f"FLUX.1-Kontext takes one input image, not a batch of shape {shape}; give one image.")
        array = array[0]
    if array.size == 0:
        raise InvalidInput(f"An input image of shape {shape} has no pixels; give another one.")
    if array.ndim == 2:
        return array
    if array.ndim == 3:
        axes = (0, 2) if channels_first else (2, 0)
        for axis in axes:
            if array.shape[axis] in _CHANNELS:
                return np.moveaxis(array, axis, 2)
        if array.shape[axes[0]] == _LATENT_CHANNELS:
            raise InvalidInput(f"A tensor of shape {shape} looks like latents; give the image itself.")
    raise InvalidInput(
        f"An input image cannot have the shape {shape}; give (height, width, channels) with 1 to 4 channels."
    )


def _unit_range(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import numpy as np

    if array.dtype in (np.uint8, np.uint16):
        return array / np.iinfo(array.dtype).max
    if not np.issubdtype(array.dtype, np.floating):
        raise InvalidInput(f"An input image cannot have values of type {array.dtype}; give uint8, or floats in 0..1.")
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        raise InvalidInput("The input image has values that are not finite; give floats in 0..1.")
    low, high = values.min(), values.max()
    # Resampling overshoots slightly, which does not mean another range.
    if low < -0.05 or high > 1.05:
        raise InvalidInput(
            f"The input image has floats from {low:g} to {high:g}, which must lie in 0..1; "
            "scale them, or give uint8 for 0..255."
        )
    return values
