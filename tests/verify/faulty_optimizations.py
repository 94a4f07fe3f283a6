"""Optimizations that claim to change only rounding and are faulty, one mistake each; two at the end are harmless."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar

import torch

from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.patching import set_attribute
from kontext_fast.optimizations.presets import Preset
from kontext_fast.pipeline.device import Machine


class _Faulty(Optimization):
    effect: ClassVar[Effect] = Effect.NUMERIC
    phase: ClassVar[Phase] = Phase.WEIGHTS
    summary: ClassVar[str] = "faulty on purpose"


class AloneOtherwise(_Faulty):
    """Calls of a single image get another velocity, and no others."""

    name: ClassVar[str] = "alone otherwise"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        forward = pipe.transformer.forward

        def negated_alone(*inputs: Any, **named: Any) -> Any:
            (velocity, *_) = forward(*inputs, **named)
            return (-velocity if len(velocity) == 1 else velocity,)

        set_attribute(pipe.transformer, "forward", negated_alone, undo)
        return {}


class NegativeIgnored(_Faulty):
    """Without a negative prompt exact; with one, its pass returns the velocity of the other pass."""

    name: ClassVar[str] = "negative ignored"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        forward = pipe.transformer.forward
        last: dict[str, torch.Tensor] = {}

        def of_one_pass(*inputs: Any, **named: Any) -> Any:
            time = named["timestep"]
            if "time" in last and last["time"].shape == time.shape and bool((last["time"] == time).all()):
                velocity = last["velocity"]
                last.clear()
                return (velocity,)
            (velocity, *_) = forward(*inputs, **named)
            last.update(time=time, velocity=velocity)
            return (velocity,)

        set_attribute(pipe.transformer, "forward", of_one_pass, undo)
        return {}


class BlockSkipped(_Faulty):
    name: ClassVar[str] = "block skipped"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        block = pipe.transformer.transformer_blocks[-1]

        def forward(hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any) -> Any:
            return encoder_hidden_states, hidden_states

        set_attribute(block, "forward", forward, undo)
        return {}


class HeadSwapped(_Faulty):
    """K and V of one head of one block."""

    name: ClassVar[str] = "head swapped"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        attention = pipe.transformer.transformer_blocks[0].attn
        head = slice(0, attention.inner_dim // attention.heads)

        def swap() -> None:
            with torch.no_grad():
                key, value = attention.to_k.weight[head].clone(), attention.to_v.weight[head].clone()
                attention.to_k.weight[head], attention.to_v.weight[head] = value, key

        swap()
        undo.callback(swap)
        return {}


class ScaleOff(_Faulty):
    """Five percent on what every block writes, as a wrong scale of quantized weights would give."""

    name: ClassVar[str] = "scale off"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        transformer = pipe.transformer
        layers = [
            layer for block in transformer.transformer_blocks for layer in (block.attn.to_out[0], block.ff.net[2])
        ]
        layers += [block.proj_out for block in transformer.single_transformer_blocks]
        for layer in layers:
            before = layer.weight.data
            layer.weight.data = before * 1.05
            undo.callback(setattr, layer.weight, "data", before)
        return {}


class CacheNotReset(_Faulty):
    """A cache of the first block's output that every second step of a request may use, and the next request too."""

    name: ClassVar[str] = "cache not reset"
    phase: ClassVar[Phase] = Phase.STEPS

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        block = pipe.transformer.transformer_blocks[0]
        forward = block.forward
        calls: list[Any] = []

        def cached(*args: Any, **kwargs: Any) -> Any:
            # One step in five reuses the output of the step before it, even that of another request.
            if calls and len(calls) % 5 == 4:
                calls.append(calls[-1])
            else:
                calls.append(forward(*args, **kwargs))
            return calls[-1]

        set_attribute(block, "forward", cached, undo)
        return {}


class SeedsShifted(_Faulty):
    name: ClassVar[str] = "seeds shifted"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        prepare = pipe.prepare_latents

        def shifted(*args: Any, **kwargs: Any) -> Any:
            moved = []
            for value in args:
                if isinstance(value, list) and value and isinstance(value[0], torch.Generator):
                    value = [torch.Generator().manual_seed(seed.initial_seed() + 1) for seed in value]
                moved.append(value)
            return prepare(*moved, **kwargs)

        set_attribute(pipe, "prepare_latents", shifted, undo)
        return {}


class FailsOnOne(_Faulty):
    """Raises for the second instruction that it sees, whatever else is in the call."""

    name: ClassVar[str] = "fails on one"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        encode = pipe.encode_prompt
        seen: dict[str, None] = {}

        def failing(*args: Any, prompt: Any, **kwargs: Any) -> Any:
            texts = [prompt] if isinstance(prompt, str) else prompt
            seen.update(dict.fromkeys(texts))
            if list(seen)[1:2] in [[text] for text in texts]:
                raise RuntimeError("a kernel failed")
            return encode(*args, prompt=prompt, **kwargs)

        set_attribute(pipe, "encode_prompt", failing, undo)
        return {}


class FailsOnce(_Faulty):
    """Raises in its second call only."""

    name: ClassVar[str] = "fails once"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        encode = pipe.encode_prompt
        calls: list[None] = []

        def failing(*args: Any, **kwargs: Any) -> Any:
            calls.append(None)
            if len(calls) == 2:
                raise RuntimeError("a kernel failed")
            return encode(*args, **kwargs)

        set_attribute(pipe, "encode_prompt", failing, undo)
        return {}


class FailsAlways(_Faulty):
    name: ClassVar[str] = "fails always"
    tried: ClassVar[list[None]] = []

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        def failing(*args: Any, **kwargs: Any) -> Any:
            self.tried.append(None)
            raise RuntimeError("a kernel does not compile")

        set_attribute(pipe, "encode_prompt", failing, undo)
        return {}


class Untouched(_Faulty):
    """Does nothing at all, so that it must pass."""

    name: ClassVar[str] = "untouched"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        return {}


class Rounded(_Faulty):
    """Weights moved by a part in ten thousand, as a correct kernel with another order of summation would do."""

    name: ClassVar[str] = "rounded"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        layer = pipe.transformer.transformer_blocks[0].ff.net[2]
        before = layer.weight.data
        layer.weight.data = before * 1.0001
        undo.callback(setattr, layer.weight, "data", before)
        return {}


class NeedsAnotherMachine(_Faulty):
    name: ClassVar[str] = "needs another machine"

    def refusal(self, machine: Machine) -> str | None:
        return "this machine will not do, get another machine"

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        raise AssertionError("it was refused")


def preset(*optimizations: Optimization) -> Preset:
    return Preset("+".join(optimization.name for optimization in optimizations), "planted by a test", optimizations)
