"""Time all of an edit but the transformer, and say what the GPU waited for.

Usage: python -m benchmarks.gpu.surroundings_check [--checkpoint random] [--size 1024] [--preset turbo] [--steps 28]
[--calls 4] [--no-trace] [--out FILE.json]

`around` is the time of `edit` less its computed steps, each taken
as long as their median, in milliseconds; `rest` is what lies outside of the stages; `pipe_ms` is a call of the pipeline
itself. `gaps` are the times at which the GPU had nothing to do in an edit of one step, with the Python functions that
ran then, and `waits` the calls that made the host wait for the GPU. Exit code 0: done; 3: no GPU.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.gpu.check import NO_GPU, has_gpu, now, option_parser, write_report
from kontext_fast.bench.timing import StageClock
from kontext_fast.datasets.shapes import held_out
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.pipeline.edit import EditRequest, edit, text_length
from kontext_fast.pipeline.load import load

_LEAST_GAP_MS, _MOST_GAPS = 0.1, 16


def main() -> int:
    """Load, time, print and store."""
    parser = option_parser(__doc__)
    parser.add_argument("--checkpoint", default="random")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--preset", default="turbo")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--no-trace", action="store_true", help="times alone")
    arguments = parser.parse_args()
    if not has_gpu():
        return NO_GPU
    pipe = load(arguments.checkpoint).pipe
    pipe.set_progress_bar_config(disable=True)
    request = EditRequest(
        "make the red circle blue",
        next(iter(held_out(1))).render(arguments.size),
        steps=arguments.steps,
        seed=0,
        size=(arguments.size, arguments.size),
    )
    report = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "preset": arguments.preset,
        **measured(pipe, request, arguments.preset, arguments.calls, trace=not arguments.no_trace),
    }
    print(json.dumps(report, indent=1))
    write_report(report, arguments.out)
    return 0


def measured(pipe: Any, request: EditRequest, preset: str, calls: int, *, trace: bool) -> dict[str, Any]:
    """What the report says of `request`, after two calls that are not timed."""
    with accelerate(pipe, preset, quiet=True) as acceleration:
        images = [_hash(edit(pipe, request).image) for _ in range(2)]
        edits = [_staged(pipe, request) for _ in range(calls)]
        whole = [_milliseconds(lambda: edit(pipe, request)) for _ in range(calls)]
        by_pipe = [_milliseconds(lambda: _call(pipe, request)) for _ in range(calls)]
        report: dict[str, Any] = {
            "facts": dict(acceleration.facts),
            "image": sorted({*images, *(image for _, image in edits)}),
            "ms": _medians([times for times, _ in edits]),
            "edit_ms": round(statistics.median(whole), 2),
            "pipe_ms": round(statistics.median(by_pipe), 2),
        }
        if trace:
            one_step = EditRequest(request.instruction, request.image, steps=1, seed=0, size=request.size)
            edit(pipe, one_step)
            report["gaps"] = gaps(lambda: edit(pipe, one_step), named=False)
            # Samples of the stack slow the host down.
            report["gaps while sampled"] = gaps(lambda: edit(pipe, one_step), named=True)
            report["waits"] = waits(lambda: edit(pipe, one_step))
    return report


def _hash(image: Any) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()[:12]


def _call(pipe: Any, request: EditRequest) -> None:
    """As a user calls it."""
    width, height = request.image.size
    pipe(
        image=request.image,
        prompt=request.instruction,
        height=height,
        width=width,
        max_area=width * height,
        _auto_resize=False,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=torch.Generator().manual_seed(0),
        max_sequence_length=text_length(pipe),
    )


def _milliseconds(call: Callable[[], object]) -> float:
    began = now()
    call()
    return 1e3 * (now() - began)


def _medians(calls: Sequence[dict[str, float]]) -> dict[str, float]:
    return {stage: round(statistics.median(times[stage] for times in calls), 2) for stage in calls[0]}


def _staged(pipe: Any, request: EditRequest) -> tuple[dict[str, float], str]:
    """Milliseconds of the stages of one edit, and what its image is."""
    now()
    with StageClock(pipe) as clock:
        began = time.perf_counter()
        result = edit(pipe, request)
        wall = 1e3 * (time.perf_counter() - began)
    now()
    times = clock.times()
    steps = [1e3 * seconds for seconds in times.steps_s]
    computed = [step for step, kind in zip(steps, result.step_kinds, strict=True) if kind == "full"]
    full = statistics.median(computed)
    stages = {stage: 1e3 * seconds for stage, seconds in times.stages_s.items()}
    return {
        **stages,
        "full": full,
        "first+": computed[0] - full,
        "skipped": sum(steps) - sum(computed),
        "wall": wall,
        "rest": wall - sum(stages.values()),
        "around": wall - sum(computed) + computed[0] - full,
    }, _hash(result.image)


def gaps(call: Callable[[], object], *, named: bool) -> dict[str, Any]:
    """When the GPU had nothing to do while `call` ran, in milliseconds from its beginning, and, where they are to be
    `named`, what ran on the host."""
    from torch.profiler import ProfilerActivity, profile

    sampling: Any = _sampled() if named else nullcontext([])
    with profile(activities=[ProfilerActivity.CUDA]) as profiler, sampling as samples:
        torch.zeros(1, device="cuda")  # the first event: it ends as the call begins
        began = now()
        call()
        ended = time.perf_counter()
        now()
    with TemporaryDirectory() as folder:
        profiler.export_chrome_trace(str(file := Path(folder) / "trace.json"))
        events = json.loads(file.read_text())["traceEvents"]
    (zero, first, _), *on_gpu = sorted(
        (event["ts"] / 1e3, event["dur"] / 1e3, event["name"])
        for event in events
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    )
    work = [(begins - zero - first, lasts, name) for begins, lasts, name in on_gpu]
    return idle(work, 1e3 * (ended - began), [(1e3 * (at - began), what) for at, what in samples])


def idle(
    work: Sequence[tuple[float, float, str]], call_ms: float, samples: Sequence[tuple[float, str]]
) -> dict[str, Any]:
    """The gaps in `work`, (beginning, duration, name) in order, until the end of the call, and what `samples` of the
    host's functions are in them; milliseconds."""
    rows: list[dict[str, Any]] = []
    busy = until = 0.0
    for begins, lasts, name in [*work, (call_ms, 0.0, "end of the call")]:
        if begins - until >= _LEAST_GAP_MS:
            ran = Counter(what for at, what in samples if until <= at < begins)
            row = {"at": round(until, 2), "ms": round(begins - until, 2), "before": name[:60]}
            rows.append({**row, "ran": [f"{count}x {what}" for what, count in ran.most_common(4)]})
        busy += max(0.0, begins + lasts - max(until, begins))
        until = max(until, begins + lasts)
    return {
        "call_ms": round(call_ms, 2),
        "busy_ms": round(busy, 2),
        "in_gaps_ms": round(sum(row["ms"] for row in rows), 2),
        "longest": sorted(sorted(rows, key=lambda row: -row["ms"])[:_MOST_GAPS], key=lambda row: float(row["at"])),
    }


@contextmanager
def _sampled(every_s: float = 0.0003) -> Iterator[list[tuple[float, str]]]:
    """(`perf_counter`, functions) of this thread while the body runs, taken from another one."""
    samples: list[tuple[float, str]] = []
    watched, ended = threading.get_ident(), threading.Event()

    def sample() -> None:
        while not ended.wait(every_s):
            if (frame := sys._current_frames().get(watched)) is not None:
                samples.append((time.perf_counter(), _where(traceback.extract_stack(frame, limit=24))))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
        sys.setswitchinterval(interval)


def _where(stack: Sequence[traceback.FrameSummary]) -> str:
    """The innermost function, and the innermost one of diffusers or of this project."""
    ours = [frame for frame in stack if "/kontext_fast/" in frame.filename or "/diffusers/" in frame.filename]
    return " < ".join(
        dict.fromkeys(f"{Path(frame.filename).stem}.{frame.name}:{frame.lineno}" for frame in (stack[-1], *ours[-1:]))
    )


def waits(call: Callable[[], object]) -> list[str]:
    """Where `call` makes the host wait for the GPU, in order, as torch warns of it."""
    places: list[str] = []

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            places.append(_where(traceback.extract_stack()[:-2]))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # Setting the mode warns of itself.
    return [place for place in places if "set_sync_debug_mode" not in place]


if __name__ == "__main__":
    sys.exit(main())
