"""One edit before and after `accelerate`: prints both times and saves both images.

It runs on FLUX.1-Kontext-dev where there is a GPU and HF_TOKEN, and on the bundled checkpoint `tiny` otherwise.
"""

# ruff: noqa: T201 - it talks to a person at a prompt
from __future__ import annotations

import time
from pathlib import Path

from kontext_fast import EditRequest, accelerate, edit, load
from kontext_fast.datasets.shapes import held_out
from kontext_fast.optimizations import DEFAULT_PRESET
from kontext_fast.pipeline.hub import default_checkpoint
from kontext_fast.pipeline.images import ImageFile, Origin

SEED = 42


def timed_edit(pipe: object, request: EditRequest, preset: str, checkpoint: str) -> float:
    """Seconds of the second call, since the first one compiles; its image is saved."""
    edit(pipe, request)
    start = time.perf_counter()
    result = edit(pipe, request)
    seconds = time.perf_counter() - start
    file = ImageFile(Path(f"kontext-{preset}.png"))
    file.save(result.image, Origin.of(request, seed=SEED, preset=preset, checkpoint=checkpoint))
    print(f"{preset}: {seconds:.2f} s, {result.size.width}x{result.size.height}, {request.steps} steps, {file.path}")
    return seconds


def main() -> None:
    checkpoint, reason = default_checkpoint(None)
    print(f"The checkpoint is {checkpoint}, since {reason}.")
    pipe = load(checkpoint).pipe
    item = held_out(1)[0]
    request = EditRequest(item.instruction, item.render(pipe.vae.config.sample_size), seed=SEED)
    print(f"The instruction is {item.instruction!r}, the preset {DEFAULT_PRESET}.")
    before = timed_edit(pipe, request, "baseline", checkpoint)
    with accelerate(pipe):
        after = timed_edit(pipe, request, DEFAULT_PRESET, checkpoint)
    print(f"{before / after:.2f} times as fast, by one call each; for a measurement use kontext bench.")


if __name__ == "__main__":
    main()
