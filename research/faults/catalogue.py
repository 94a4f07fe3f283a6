"""The planted faults by family, and what is harmless."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops, ImageEnhance, ImageFilter

from research.faults.planting import (
    HARMLESS,
    Fault,
    Picture,
    Pictures,
    Plant,
    Seen,
    always,
    around,
    every,
    forward,
    latents,
    output_of,
    recoded,
    weight_of,
)

Inputs = dict[str, Any]
Memory = dict[str, Any]
RARE = (10, 25, 33, 50)


def _first_double(pipe: Any) -> Any:
    return pipe.transformer.transformer_blocks[0]


def _last_double(pipe: Any) -> Any:
    return pipe.transformer.transformer_blocks[-1]


def _blocks(pipe: Any) -> list[Any]:
    """What every block writes last."""
    double, single = pipe.transformer.transformer_blocks, pipe.transformer.single_transformer_blocks
    return [*(block.ff for block in double), *(block.proj_out for block in single)]


def _feed_forward(pipe: Any) -> Any:
    return _first_double(pipe).ff.net[2]


# Timing: a step sees another time than its own, or does not happen.


def _late_time(old: Callable[..., Any], inputs: Inputs, memory: Memory) -> Any:
    """The time of the step before, as a graph that captured it would use."""
    now = inputs["timestep"]
    before = memory.get("time")
    memory["time"] = now
    stale = before is not None and before.shape == now.shape and bool((before > now).all())
    return old(**{**inputs, "timestep": before if stale else now})


def _scaled_time(old: Callable[..., Any], inputs: Inputs, memory: Memory) -> Any:
    return old(**{**inputs, "timestep": inputs["timestep"] * 0.98})


def _no_last_step(old: Callable[..., Any], inputs: Inputs, memory: Memory) -> Any:
    """Steps of low noise reuse the velocity before them."""
    if float(inputs["timestep"].max()) < 0.3 and _same_shape(memory.get("velocity"), inputs):
        return (memory["velocity"],)
    (memory["velocity"],) = old(**inputs)
    return (memory["velocity"],)


def _same_shape(velocity: torch.Tensor | None, inputs: Inputs) -> bool:
    return velocity is not None and velocity.shape == inputs["hidden_states"].shape


def _weak_guidance(old: Callable[..., Any], inputs: Inputs, memory: Memory) -> Any:
    guidance = inputs.get("guidance")
    return old(**{**inputs, "guidance": None if guidance is None else guidance * 0.8})


def _every_fifth_step_old(old: Callable[..., Any], inputs: Inputs, memory: Memory) -> Any:
    """A cache of velocities that the next request finds as well."""
    memory["count"] = memory.get("count", 0) + 1
    if memory["count"] % 5 == 0 and _same_shape(memory.get("velocity"), inputs):
        return (memory["velocity"],)
    (memory["velocity"],) = old(**inputs)
    return (memory["velocity"],)


# State between requests.


def _first_step_of_the_request_before(old: Callable[..., Any], inputs: Inputs, memory: Memory) -> Any:
    """A buffer that is filled after it was read: the first step of a request uses the last velocity of another."""
    time = float(inputs["timestep"].max())
    begins = time > memory.get("time", 0.0)
    memory["time"] = time
    stale = memory.get("velocity")
    (velocity,) = old(**inputs)
    memory["velocity"] = velocity
    return (stale if begins and stale is not None and stale.shape == velocity.shape else velocity,)


def _pooled_kept(old: Callable[..., Any], inputs: Inputs, memory: Memory) -> Any:
    """The pooled text of the first request is kept for all."""
    pooled = memory.setdefault("pooled", inputs["pooled_projections"])
    fits = pooled.shape == inputs["pooled_projections"].shape
    return old(**{**inputs, "pooled_projections": pooled if fits else inputs["pooled_projections"]})


def _reference_kept(every_so_many: int) -> Plant:
    """In every so many calls, the reference tokens are those of the call before."""

    def plant(pipe: Any, undo: ExitStack) -> None:
        memory: Memory = {"count": 0, "tokens": None}

        def wrap(old: Callable[..., Any]) -> Callable[..., Any]:
            def prepare(*values: Any, **named: Any) -> Any:
                noise, tokens, *rest = old(*values, **named)
                memory["count"] += 1
                before, memory["tokens"] = memory["tokens"], tokens
                stale = memory["count"] % every_so_many == 0 and before is not None and before.shape == tokens.shape
                return (noise, before if stale else tokens, *rest)

            return prepare

        around(pipe, "prepare_latents", wrap, undo)

    return plant


# Keys of caches that hold too little.


def _prompt_key(key: Callable[[str], str]) -> Plant:
    def plant(pipe: Any, undo: ExitStack) -> None:
        first: dict[str, str] = {}

        def wrap(old: Callable[..., Any]) -> Callable[..., Any]:
            def encode(*values: Any, prompt: Any, **named: Any) -> Any:
                texts = [prompt] if isinstance(prompt, str) else prompt
                cached = [first.setdefault(key(text), text) for text in texts]
                return old(*values, prompt=cached, **{**named, "prompt_2": None})

            return encode

        around(pipe, "encode_prompt", wrap, undo)

    return plant


def _image_key(key: Callable[[torch.Tensor], object]) -> Plant:
    """A cache of inputs: two with the same key are the same one."""

    def plant(pipe: Any, undo: ExitStack) -> None:
        first: dict[object, torch.Tensor] = {}

        def wrap(old: Callable[..., Any]) -> Callable[..., Any]:
            def prepare(image: torch.Tensor | None, *rest: Any, **named: Any) -> Any:
                if image is not None:
                    image = torch.stack([first.setdefault((row.shape, key(row)), row) for row in image])
                return old(image, *rest, **named)

            return prepare

        around(pipe, "prepare_latents", wrap, undo)

    return plant


# Precision and arithmetic.


def _overflow_clamp(output: torch.Tensor) -> torch.Tensor:
    """The largest 0.1 % of the activations are cut off."""
    limit = torch.quantile(output.abs().float().flatten()[:1_000_000], 0.999).to(output.dtype)
    return output.clamp(-limit, limit)


def _rounded_to(bits: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(weight: torch.Tensor) -> torch.Tensor:
        scale = weight.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
        return (weight / scale).round() * scale

    return change


def _block_skipped(pipe: Any, undo: ExitStack) -> None:
    def wrap(old: Callable[..., Any]) -> Callable[..., Any]:
        return lambda hidden_states, encoder_hidden_states, **_: (encoder_hidden_states, hidden_states)

    around(_last_double(pipe), "forward", wrap, undo)


def _head_swapped(pipe: Any, undo: ExitStack) -> None:
    attention = _first_double(pipe).attn
    head = slice(0, attention.inner_dim // attention.heads)

    def swap() -> None:
        with torch.no_grad():
            key, value = attention.to_k.weight[head].clone(), attention.to_v.weight[head].clone()
            attention.to_k.weight[head], attention.to_v.weight[head] = value, key

    swap()
    undo.callback(swap)


def _positions_off(old: Callable[..., Any], inputs: Inputs, memory: Memory) -> Any:
    """Positions of the noise tokens are one row off."""
    positions = inputs["img_ids"].clone()
    positions[: inputs["hidden_states"].shape[1] // 2, 1] += 1
    return old(**{**inputs, "img_ids": positions})


def _last_token_lost(old: Callable[..., Any], inputs: Inputs, memory: Memory) -> Any:
    """A tail that a kernel does not reach: the last reference token is zero."""
    states = inputs["hidden_states"].clone()
    states[:, -1] = 0
    return old(**{**inputs, "hidden_states": states})


# Seeds.


def _with_seed(change: Callable[[int, int], int]) -> Plant:
    return latents(
        lambda generators: [
            torch.Generator(generator.device).manual_seed(change(index, generator.initial_seed()))
            for index, generator in enumerate(generators)
        ]
    )


# Pictures.


def _input(picture: Picture, source: Picture, seen: Seen) -> Picture:
    return source


def _picture_before(picture: Picture, source: Picture, seen: Seen) -> Picture:
    return picture if seen.before is None or seen.before.shape != picture.shape else seen.before


def _black(picture: Picture, source: Picture, seen: Seen) -> Picture:
    return np.zeros_like(picture)


def _noise(picture: Picture, source: Picture, seen: Seen) -> Picture:
    return np.random.default_rng(seen.count).uniform(0, 255, picture.shape).astype(np.float32)


def _half_black(picture: Picture, source: Picture, seen: Seen) -> Picture:
    spoiled = picture.copy()
    spoiled[len(picture) // 2 :] = 0
    return spoiled


def _mark(picture: Picture, source: Picture, seen: Seen) -> Picture:
    spoiled = picture.copy()
    spoiled[-6:, -6:] = 255
    return spoiled


def _edge(picture: Picture, source: Picture, seen: Seen) -> Picture:
    spoiled = picture.copy()
    spoiled[:1] = 0
    return spoiled


def _zoomed(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.resize((width + 4, height + 4), Image.Resampling.BICUBIC).crop((2, 2, width + 2, height + 2))


FAULTS: tuple[Fault, ...] = (
    Fault("time of the step before", "timing", forward(_late_time)),
    Fault("time scaled by 0.98", "timing", forward(_scaled_time)),
    Fault("last steps reuse a velocity", "timing", forward(_no_last_step)),
    Fault("guidance at 80 %", "timing", forward(_weak_guidance)),
    Fault("cache not reset", "state", forward(_every_fifth_step_old)),
    Fault("first step of the request before", "state", forward(_first_step_of_the_request_before)),
    Fault("pooled text of the first request", "state", forward(_pooled_kept)),
    Fault("reference of the call before, 1 in 5", "state", _reference_kept(5)),
    Fault("prompt key without the last word", "cache key", _prompt_key(lambda text: text.rpartition(" ")[0])),
    Fault("prompt key of 12 letters", "cache key", _prompt_key(lambda text: text[:12])),
    Fault("image key of the corner", "cache key", _image_key(lambda row: round(float(row[:, 0, 0].sum()), 2))),
    Fault("image key of the mean", "cache key", _image_key(lambda row: round(float(row.mean()), 1))),
    Fault("overflow clamp", "precision", output_of(_blocks, _overflow_clamp)),
    Fault("4-bit weights in one layer", "precision", weight_of(_feed_forward, _rounded_to(4))),
    Fault("weights times 1.05 in one layer", "precision", weight_of(_feed_forward, lambda weight: weight * 1.05)),
    Fault("block skipped", "precision", _block_skipped),
    Fault("head swapped", "precision", _head_swapped),
    Fault("positions one row off", "precision", forward(_positions_off)),
    Fault("last token lost", "precision", forward(_last_token_lost)),
    Fault("seed ignored", "seeds", _with_seed(lambda index, seed: 0)),
    Fault("seeds shifted", "seeds", _with_seed(lambda index, seed: seed + 1)),
    Fault("seeds by place in the batch", "seeds", _with_seed(lambda index, seed: index)),
    *(Fault(f"unedited input, 1 in {count}", "rare", every(count, _input)) for count in RARE),
    *(Fault(f"picture of another request, 1 in {count}", "rare", every(count, _picture_before)) for count in RARE),
    *(Fault(f"black picture, 1 in {count}", "rare", every(count, _black)) for count in (10, 50)),
    Fault("noise, 1 in 50", "rare", every(50, _noise)),
    Fault("half a picture, 1 in 25", "rare", every(25, _half_black)),
    Fault("brightness 1 %", "small", always(lambda image: ImageEnhance.Brightness(image).enhance(1.01))),
    Fault("contrast 2 %", "small", always(lambda image: ImageEnhance.Contrast(image).enhance(0.98))),
    Fault("saturation 5 %", "small", always(lambda image: ImageEnhance.Color(image).enhance(0.95))),
    Fault("mark in a corner", "small", Pictures(_mark)),
    Fault("first row lost", "small", Pictures(_edge)),
    Fault("shift of one pixel", "geometric", always(lambda image: ImageChops.offset(image, 1, 0))),
    Fault("zoom of 3 %", "geometric", always(_zoomed)),
    Fault("turned by 0.5 degrees", "geometric", always(lambda image: image.rotate(0.5, Image.Resampling.BICUBIC))),
    Fault("blur of half a pixel", "geometric", always(lambda image: image.filter(ImageFilter.GaussianBlur(0.5)))),
    Fault("JPEG at quality 90", "codec", always(recoded(quality=90, subsampling=0))),
    Fault("halved chroma", "codec", always(recoded(quality=98, subsampling=2))),
    Fault("6 bits per color", "codec", always(lambda image: image.point(lambda value: value & 0xFC))),
    Fault("gamma 1.02", "codec", always(lambda image: image.point(lambda value: round(255 * (value / 255) ** 1.02)))),
)


# Harmless: rounding differs, and nothing else.


def _other_precision_of_sums(pipe: Any, undo: ExitStack) -> None:
    """One layer sums its two halves apart."""
    layer = _feed_forward(pipe)
    half = layer.in_features // 2

    def wrap(old: Callable[..., Any]) -> Callable[..., Any]:
        def summed(states: torch.Tensor) -> torch.Tensor:
            first, second = layer.weight[:, :half], layer.weight[:, half:]
            total: torch.Tensor = states[..., :half] @ first.T + states[..., half:] @ second.T
            return total if layer.bias is None else torch.add(total, layer.bias)

        return summed

    around(layer, "forward", wrap, undo)


def _reversed_order(layer_of: Callable[[Any], Any]) -> Plant:
    """One layer sums in the opposite order."""

    def plant(pipe: Any, undo: ExitStack) -> None:
        layer = layer_of(pipe)

        def wrap(old: Callable[..., Any]) -> Callable[..., Any]:
            return lambda states: torch.nn.functional.linear(states.flip(-1), layer.weight.flip(-1), layer.bias)

        around(layer, "forward", wrap, undo)

    return plant


def _math_attention(pipe: Any, undo: ExitStack) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    undo.enter_context(sdpa_kernel([SDPBackend.MATH]))


def _wide_layer(layer_of: Callable[[Any], Any]) -> Plant:
    """One layer in double precision."""

    def plant(pipe: Any, undo: ExitStack) -> None:
        layer = layer_of(pipe)

        def wrap(old: Callable[..., Any]) -> Callable[..., Any]:
            def linear(states: torch.Tensor) -> torch.Tensor:
                bias = None if layer.bias is None else layer.bias.double()
                wide = torch.nn.functional.linear(states.double(), layer.weight.double(), bias)
                return wide.to(states.dtype)

            return linear

        around(layer, "forward", wrap, undo)

    return plant


def _touched(old: Callable[..., Any], inputs: Inputs, memory: Memory) -> Any:
    """Inputs are copied, and nothing else."""
    return old(**{name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()})


def _single_out(pipe: Any) -> Any:
    return pipe.transformer.single_transformer_blocks[0].proj_out


def _query(pipe: Any) -> Any:
    return _first_double(pipe).attn.to_q


HARMLESS_CHANGES: tuple[Fault, ...] = (
    Fault("nothing", HARMLESS, lambda pipe, undo: None),
    Fault("copied inputs", HARMLESS, forward(_touched)),
    Fault("weights times 1.0001 in one layer", HARMLESS, weight_of(_feed_forward, lambda weight: weight * 1.0001)),
    Fault("weights times 0.9999 in a query", HARMLESS, weight_of(_query, lambda weight: weight * 0.9999)),
    Fault("sums in two halves", HARMLESS, _other_precision_of_sums),
    Fault("sums in the opposite order", HARMLESS, _reversed_order(_feed_forward)),
    Fault("opposite order in a single block", HARMLESS, _reversed_order(_single_out)),
    Fault("opposite order in a query", HARMLESS, _reversed_order(_query)),
    Fault("double precision in one layer", HARMLESS, _wide_layer(_feed_forward)),
    Fault("another kernel of attention", HARMLESS, _math_attention),
)


def named(name: str) -> Fault:
    """Raises StopIteration for an unknown name."""
    return next(fault for fault in (*FAULTS, *HARMLESS_CHANGES) if fault.name == name)
