"""`text_graphs`: the text encoders as CUDA graphs, since the host takes longer to launch their kernels than they run.

T5 has 24 layers of some sixty operations each, all of them small at 512 tokens. A graph launches them at once. It is
built from the operations that a call runs otherwise, in the same order, and has to reproduce the bits of that call
before it is used. T5 begins with the call, before anything else, so that a GPU is at work while the host prepares the
rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from kontext_fast.optimizations.base import Conflict, Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.call_tracking import CallTracker, PipelineCall, track_calls
from kontext_fast.optimizations.module_state import module_state, reason_against_recording
from kontext_fast.optimizations.patching import defined_by_libraries, has_another_forward, replace_method, submodules
from kontext_fast.pipeline.device import Machine
from kontext_fast.pipeline.edit import text_length
from kontext_fast.pipeline.previews import AROUND

if TYPE_CHECKING:
    from torch import Tensor

    from kontext_fast.engine.graphs.recording import Recorder

_ENCODERS = ("text_encoder", "text_encoder_2")

_KEPT = 4
"""Graphs per encoder: one for each number of prompts and length."""


class TextGraphs(Optimization):
    """One prompt of the usual length is recorded when it is applied, so that the first call replays it. Another number
    of prompts or length is recorded at the second call that has it, which takes about three times as long as encoding.
    Weights that moved are recorded again; encoders with adapters, hooks or a forward of their own, and those on another
    device, run as before, which is counted with the reason."""

    name: ClassVar[str] = "text_graphs"
    summary: ClassVar[str] = "text encoders as CUDA graphs, launched at once instead of kernel by kernel"
    effect: ClassVar[Effect] = Effect.EXACT
    phase: ClassVar[Phase] = Phase.COMPILE
    conflicts: ClassVar[tuple[Conflict, ...]] = (
        Conflict("offload", because="offload moves the encoders' weights at each call; leave text_graphs out"),
    )

    def label_on(self, machine: Machine) -> str | None:
        """That only CUDA has graphs."""
        return None if machine.device == "cuda" else f"text_graphs: changes nothing on {machine.device}"

    def precompile_calls(self, pipe: Any) -> Sequence[Callable[[], object]]:
        """The kernel of T5's attention."""
        import torch

        from kontext_fast.engine.graphs.op_tape import has_kernels

        scores = torch.zeros(1, device=pipe._execution_device)
        if not has_kernels(scores):
            return ()
        from kontext_fast.engine.kernels.safe_softmax import safe_softmax

        return (lambda: safe_softmax(scores),)

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Replace `forward` of the encoders on their instances, for calls of the pipeline.

        Facts: those of `recorded_calls.new_facts`.
        """
        from kontext_fast.engine.graphs import recording
        from kontext_fast.engine.graphs.recorded_calls import new_facts

        facts: Facts = new_facts()
        recorder = recording.recorder_for(pipe._execution_device)
        if recorder is None:
            return facts
        calls = track_calls(pipe, undo)
        recording_first = False
        encoders = {name: encoder for name in _ENCODERS if (encoder := getattr(pipe, name)) is not None}
        for name, encoder in encoders.items():
            if has_another_forward(encoder) or encoder._compiled_call_impl is not None:
                # Of offloading, of a compilation, or somebody's own: what it does at a call is not known.
                facts["unrecorded"][f"{name} has a forward of its own"] = 1
                continue
            graphs = _EncoderGraphs(recorder, facts)

            def encode(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any], graphs: Any = graphs) -> Any:
                if calls.current is None and not recording_first:
                    return original(*args, **kwargs)
                return graphs.run(original, args, kwargs)

            replace_method(encoder, "forward", encode, undo)
            undo.callback(graphs.clear)
        if _encodes_on(pipe._execution_device, pipe, encoders):
            recording_first = True
            _encode_twice(pipe)
            recording_first = False
            _begin_with_t5(pipe, calls, undo)
        return facts


def _encodes_on(device: Any, pipe: Any, encoders: Mapping[str, Any]) -> bool:
    """Whether `pipe` has all that it takes to encode text there."""
    if len(encoders) < len(_ENCODERS) or None in (pipe.tokenizer, pipe.tokenizer_2):
        return False
    weights = (weight for encoder in encoders.values() for weight in encoder.parameters())
    return all(weight.device.type == device.type for weight in weights)


_OF_T5 = "embeddings of T5"


def _begin_with_t5(pipe: Any, calls: CallTracker, undo: ExitStack) -> None:
    """Have T5 run first in calls of `pipe`, until `undo` is closed; what it gives is kept until it is asked for.

    diffusers begins with the image and CLIP, both of which a GPU is through with before the host has found the tokens.
    """

    def begin(call: PipelineCall) -> None:
        import torch

        if _will_encode(call):
            of_clip = {
                "prompt": _listed(call.arguments["prompt"]),
                "device": call.pipe._execution_device,
                "num_images_per_prompt": call.arguments["num_images_per_prompt"],
            }
            with torch.no_grad():
                keep(call, of_clip)

    def keep(call: PipelineCall, of_clip: dict[str, Any]) -> None:
        of_t5 = _arguments_of_t5(call.arguments, of_clip)
        if of_t5 is not None:
            # What is kept with the same arguments already is given and kept again.
            call.memory[_OF_T5] = of_t5, call.pipe._get_t5_prompt_embeds(**of_t5)

    def clip(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = calls.current
        if call is not None and not args:
            keep(call, kwargs)
        return original(*args, **kwargs)

    def t5(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = calls.current
        arguments, embeddings = (None, None) if call is None else call.memory.pop(_OF_T5, (None, None))
        if not args and kwargs == arguments:
            return embeddings
        if call is None or vars(call.pipe).get("text_encoder_2") is None:
            return original(*args, **kwargs)
        # Past the pipeline's own way, which would register it.
        own = vars(call.pipe)
        encoder, own["text_encoder_2"] = own["text_encoder_2"], _QuicklySearched(own["text_encoder_2"])
        try:
            return original(*args, **kwargs)
        finally:
            own["text_encoder_2"] = encoder

    replaced = {"_get_clip_prompt_embeds": clip, "_get_t5_prompt_embeds": t5}
    if not vars(pipe).keys() & replaced.keys():  # otherwise they are somebody's own
        for name, replacement in replaced.items():
            calls.replace_method(pipe, name, replacement, undo)
        calls.on_begin(begin, undo)


def _will_encode(call: PipelineCall) -> bool:
    """Whether `call` will encode its prompt as diffusers does, with nothing changed before that."""
    arguments, pipe = call.arguments, call.pipe
    prompt, length = arguments.get("prompt"), arguments.get("max_sequence_length")
    own = vars(pipe).get("encode_prompt")
    return (
        bool(prompt)
        and isinstance(prompt, str | list)
        and isinstance(arguments.get("num_images_per_prompt"), int)
        and isinstance(length, int)
        and length <= text_length(pipe)
        and arguments.get("prompt_embeds") is None
        # They may scale the adapters of an encoder.
        and not arguments.get("joint_attention_kwargs")
        # A cache of prompts, or several GPUs, may need no T5 here; a clock leaves it as it is.
        and defined_by_libraries(type(pipe).encode_prompt)
        and (own is None or hasattr(own, AROUND))
    )


class _QuicklySearched:
    """An encoder that shows its modules only where one has a hook: before a pipeline runs it, it looks for hooks in all
    of them, by `hasattr`."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._encoder(*args, **kwargs)

    def modules(self) -> Iterable[Any]:
        hooked = any(
            "_hf_hook" in vars(module) or "_diffusers_hook" in vars(module) for module in submodules(self._encoder)
        )
        return self._encoder.modules() if hooked else ()


def _arguments_of_t5(of_call: Mapping[str, Any], of_clip: dict[str, Any]) -> dict[str, Any] | None:
    """With which arguments a pipeline will ask for the embeddings of T5 after those of CLIP; None where that is not
    known."""
    for prompt, second in (("prompt", "prompt_2"), ("negative_prompt", "negative_prompt_2")):
        if of_call.get(prompt) is not None and _listed(of_call[prompt]) == of_clip.get("prompt"):
            texts = _listed(of_call.get(second) or of_call[prompt])
            return {**of_clip, "prompt": texts, "max_sequence_length": of_call.get("max_sequence_length")}
    return None


def _listed(texts: Any) -> Any:
    return [texts] if isinstance(texts, str) else texts


def _encode_twice(pipe: Any) -> None:
    """Have one prompt encoded as calls of `pipe` do; the second time is recorded."""
    import torch

    with torch.no_grad():
        for _ in range(2):
            pipe.encode_prompt("", max_sequence_length=text_length(pipe))


class _EncoderGraphs:
    """The graphs of one encoder, by shape and arguments."""

    def __init__(self, recorder: Recorder, facts: Facts) -> None:
        from kontext_fast.engine.graphs.recorded_calls import RecordedCalls

        self._recorder = recorder
        self._calls = RecordedCalls(recorder, facts, _KEPT)
        self._forms: dict[Any, tuple[type, tuple[str, ...]]] = {}
        """Of an encoder's output, a mapping of names to tensors: its class and its names, by what is recorded."""

    def run(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        encoder, ids = original.__self__, _only_tensor(args, kwargs)
        if ids is None:
            reason: str | None = "other arguments"
        elif not self._recorder.runs_on(ids.device):
            reason = f"on the {ids.device.type}"
        else:
            reason = reason_against_recording(encoder)
        if reason is not None:
            self._calls.count(reason)
            return original(*args, **kwargs)
        assert ids is not None
        positional = tuple(value is ids or value for value in args)
        named = tuple(sorted((name, value is ids or value) for name, value in kwargs.items()))
        key = (positional, named)

        def encode(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            (static,) = inputs
            output = original(
                *(static if value is ids else value for value in args),
                **{name: static if value is ids else value for name, value in kwargs.items()},
            )
            self._forms[key] = type(output), tuple(output.keys())
            return tuple(output.values())

        tensors = self._calls.run(key, encode, [ids], state=module_state(encoder), taped=True)
        kind, names = self._forms[key]
        return kind(**dict(zip(names, tensors, strict=True)))

    def clear(self) -> None:
        self._calls.clear()


def _only_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The token ids; None where there are other tensors or arguments that are no plain values."""
    from torch import Tensor

    values = [*args, *kwargs.values()]
    tensors = [value for value in values if isinstance(value, Tensor)]
    plain = all(value is None or isinstance(value, Tensor | bool | int | float | str) for value in values)
    return tensors[0] if plain and len(tensors) == 1 else None
