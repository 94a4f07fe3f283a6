"""Time what surrounds the transformer before and with text_graphs and device_pixels, and check that no bit changes.

Usage: python -m benchmarks.gpu.overhead_check [--checkpoint random] [--size 1024] [--calls 7] [--out FILE.json]

Each stage of an edit in one step is timed from one synchronization to the next, in milliseconds; `whole call` without
any. Embeddings, latents and images are compared with those of the preset `faithful` alone: for several prompts, in
threads with a copy of the pipeline each, after weights of an encoder moved or changed in place, and with a LoRA on it.
Exit code 0: done; 1: something differs, or no graph was replayed; 3: no GPU.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.check import NO_GPU, has_gpu, now, option_parser, write_report
from kontext_fast.datasets.shapes import held_out
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.presets import PRESETS
from kontext_fast.optimizations.techniques.device_pixels import DevicePixels
from kontext_fast.optimizations.techniques.text_graphs import TextGraphs
from kontext_fast.pipeline.edit import EditRequest, edit, text_length
from kontext_fast.pipeline.load import load

PROMPTS = ("make the red circle blue", "remove the green star", "make the background purple")

AROUND: tuple[Optimization, ...] = (TextGraphs(), DevicePixels())


def main() -> int:
    """Load, compare, time, print and store."""
    parser = option_parser(__doc__)
    parser.add_argument("--checkpoint", default="random")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--calls", type=int, default=7)
    arguments = parser.parse_args()
    if not has_gpu():
        return NO_GPU
    pipe = load(arguments.checkpoint).pipe
    report = {"gpu": torch.cuda.get_device_name(), **measured(pipe, arguments.size, arguments.calls)}
    print(json.dumps(report, indent=1))
    write_report(report, arguments.out)
    return 0 if all(report["equal"].values()) and report["facts"]["text_graphs"]["replays"] else 1


def measured(pipe: Any, size: int, calls: int) -> dict[str, Any]:
    """Milliseconds per stage before and after, whether each comparison found equal bits, and the facts."""
    requests = [
        EditRequest(prompt, item.render(size), steps=1, seed=index, size=(size, size))
        for index, (prompt, item) in enumerate(zip(PROMPTS, held_out(len(PROMPTS)), strict=True))
    ]
    faithful = PRESETS["faithful"].optimizations
    with accelerate(pipe, faithful, quiet=True):
        expected = [_outputs(pipe, request) for request in requests]
        before = _times(pipe, requests, calls)
        tuned = _with_cudnn_search(lambda: _times(pipe, requests, calls)["decode"])
    with accelerate(pipe, [*faithful, *AROUND], quiet=True) as acceleration:
        equal = {}
        for repetition in ("at first", "again"):
            outputs = [_outputs(pipe, request) for request in requests]
            for name in ("embeddings", "latents", "images"):
                equal[f"{name}, {repetition}"] = _same(
                    [of_request[name] for of_request in outputs], [reference[name] for reference in expected]
                )
        equal["images in threads"] = _same(_in_threads(pipe, requests), [reference["images"] for reference in expected])
        # Before a LoRA comes and goes, which leaves wrapped layers that are not recorded.
        after = _times(pipe, requests, calls)
        equal |= _after_changes(pipe, requests[0])
        facts = {name: dict(acceleration.facts[name]) for name in ("text_graphs", "device_pixels")}
    with accelerate(pipe, faithful, quiet=True):
        equal["images after revert"] = _same(
            [_outputs(pipe, request)["images"] for request in requests], [reference["images"] for reference in expected]
        )
    return {
        "ms": {stage: {"before": before[stage], "after": after[stage]} for stage in before},
        "decode_ms_with_cudnn_search": tuned,
        "equal": equal,
        "facts": facts,
    }


def _outputs(pipe: Any, request: EditRequest) -> dict[str, Sequence[Any]]:
    """Embeddings, the latents that are decoded, and the image of one edit."""
    embeddings: list[Any] = []
    latents: list[Any] = []
    with (
        _watched(pipe, "encode_prompt", lambda _, result: embeddings.extend(tensor.cpu() for tensor in result[:2])),
        _watched(pipe.vae, "decode", lambda args, _: latents.append(args[0].cpu())),
    ):
        image = edit(pipe, request).images[0]
    return {"embeddings": embeddings, "latents": latents, "images": [np.array(image)]}


def _in_threads(pipe: Any, requests: Sequence[EditRequest]) -> list[Sequence[Any]]:
    """The image of each request from a copy of `pipe` in a thread of its own; the last of four."""
    copies = [copy.copy(pipe) for _ in requests]
    for own in copies:
        own.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)

    def often(own: Any, request: EditRequest) -> Sequence[Any]:
        return [np.array([edit(own, request).images[0] for _ in range(4)][-1])]

    with ThreadPoolExecutor(len(copies)) as threads:
        return list(threads.map(often, copies, requests))


def _after_changes(pipe: Any, request: EditRequest) -> dict[str, bool]:
    """Whether embeddings follow changes of an encoder. Outside a call of the pipeline no graph runs."""
    from peft import LoraConfig

    def follows() -> bool:
        with torch.no_grad():
            embeddings = pipe.encode_prompt(
                prompt=request.instruction, prompt_2=None, max_sequence_length=text_length(pipe)
            )[:2]
        expected = [tensor.cpu() for tensor in embeddings]
        return all(_same([_outputs(pipe, request)["embeddings"]], [expected]) for _ in range(3))

    equal = {}
    weight = pipe.text_encoder_2.encoder.block[0].layer[0].SelfAttention.q.weight
    original = weight.data
    changed = original * 1.5
    weight.data = changed
    equal["embeddings after weights moved"] = follows()
    weight.data.mul_(0.5)
    equal["embeddings after weights changed in place"] = follows()
    weight.data = original
    pipe.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False), "check")
    pipe.text_encoder.eval()
    equal["embeddings with a LoRA"] = follows()
    pipe.text_encoder.delete_adapter("check")
    equal["embeddings after the LoRA"] = follows()
    return equal


def _times(pipe: Any, requests: Sequence[EditRequest], calls: int) -> dict[str, float]:
    """Median milliseconds of each stage of an edit, and of whole calls without synchronizing inside."""
    stages = [_staged(pipe, requests[index % len(requests)]) for index in range(calls + 2)][2:]
    medians = {stage: statistics.median(times[stage] for times in stages) for stage in stages[0]}
    return {**medians, "whole call": statistics.median(_whole(pipe, requests[0]) for _ in range(calls))}


def _staged(pipe: Any, request: EditRequest) -> dict[str, float]:
    """Milliseconds between the ends of the stages of one edit, each synchronized."""
    marks: dict[str, float] = {"begin": now()}

    def mark(stage: str) -> Callable[..., None]:
        return lambda *_: marks.__setitem__(stage, now())

    with (
        _watched(pipe, "encode_prompt", mark("text"), before=mark("pixels in")),
        _watched(pipe.vae, "encode", mark("encode"), before=mark("before encode")),
        _watched(pipe.vae, "decode", mark("decode"), before=mark("one step and the loop")),
    ):
        edit(pipe, request)
    marks["pixels out"] = now()
    names, ends = list(marks), list(marks.values())
    return {name: 1e3 * (end - began) for name, began, end in zip(names[1:], ends, ends[1:], strict=False)}


def _whole(pipe: Any, request: EditRequest) -> float:
    began = now()
    edit(pipe, request)
    return 1e3 * (now() - began)


@contextmanager
def _watched(
    owner: Any, name: str, after: Callable[[Any, Any], None], before: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Call `before()` and `after(args, result)` around the method `name` of `owner`."""
    method = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        before()
        result = method(*args, **kwargs)
        after(args, result)
        return result

    # Past a module's and a pipeline's own way, which would register it.
    vars(owner)[name] = watched
    try:
        yield
    finally:
        del vars(owner)[name]


def _with_cudnn_search(call: Callable[[], float]) -> float:
    """The result of `call` while cuDNN times its algorithms at the first call of each size."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        return call()
    finally:
        torch.backends.cudnn.benchmark = before


def _same(actual: Sequence[Sequence[Any]], expected: Sequence[Sequence[Any]]) -> bool:
    return all(
        len(mine) == len(theirs) > 0
        and all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(mine, theirs, strict=True))
        for mine, theirs in zip(actual, expected, strict=True)
    )


if __name__ == "__main__":
    sys.exit(main())
