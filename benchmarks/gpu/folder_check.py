"""Time a folder of images against the same edits from memory: what reading, decoding and saving add.

Usage: python -m benchmarks.gpu.folder_check [--checkpoint random] [--preset turbo] [--size 1024] [--images 200]
       [--block 50] [--every 8] [--steps 28] [--minutes 8.5] --out FILE.json

The images are edited in blocks, each block from files as `kontext edit` does it and every eighth of its images from
memory as well, in turns which comes first: the time of an edit does not depend on its image, so the mean of those
stands for the rest (`--every 1` makes all of them twice). Half of the inputs are JPEG and half are PNG, with noise on
them, so that they take as long to decode as photos. After every block the report is written, and the same command goes
on with the next one where the minutes were over: 200 images at 1024x1024 with `turbo` take about 8 minutes on an H100.
Exit code 0: done; 1: the folder took more than 1.05 times the sum, or blocks are left; 3: no GPU.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu.check import NO_GPU, has_gpu, option_parser, write_report
from kontext_fast.cli.session import ImageJob, Session, Setup, do_jobs, open_session
from kontext_fast.datasets.shapes import held_out
from kontext_fast.errors import KontextError
from kontext_fast.pipeline.edit import EditRequest
from kontext_fast.pipeline.images import ImageFile

MOST = 1.05
"""What a folder may take, in sums of the same edits from memory."""


def main() -> int:
    """Measure the blocks that are left, print and store."""
    parser = option_parser(__doc__)
    parser.add_argument("--checkpoint", default="random")
    parser.add_argument("--preset", default="turbo")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--block", type=int, default=50)
    parser.add_argument("--every", type=int, default=8, help="of a block, made from memory, too")
    parser.add_argument("--minutes", type=float, default=8.5)
    arguments = parser.parse_args()
    if not has_gpu():
        return NO_GPU
    end = time.monotonic() + 60 * arguments.minutes
    setup = Setup(checkpoint=arguments.checkpoint, preset=arguments.preset, lora=(), device=None)
    blocks = json.loads(arguments.out.read_text())["blocks"] if arguments.out and arguments.out.exists() else []
    with open_session(setup) as session, TemporaryDirectory() as folder:
        session.edit(jobs_in(Path(folder), range(1), arguments.size, arguments.steps)[0].request(), name="warm-up")
        left = range(len(blocks) * arguments.block, arguments.images, arguments.block)
        for first in left:
            if blocks and time.monotonic() + 1.1 * (blocks[-1]["memory_s"] + blocks[-1]["folder_s"]) > end:
                break
            numbers = range(first, min(first + arguments.block, arguments.images))
            jobs = jobs_in(Path(folder), numbers, arguments.size, arguments.steps)
            blocks.append(block(session, jobs, every=arguments.every, memory_first=len(blocks) % 2 == 0))
            report = {
                "gpu": torch.cuda.get_device_name(),
                "preset": arguments.preset,
                "checkpoint": arguments.checkpoint,
                "size": arguments.size,
                "steps": arguments.steps,
                "images": sum(row["images"] for row in blocks),
                "from_memory": sum(row["from_memory"] for row in blocks),
                "ratio": ratio(blocks),
                "blocks": blocks,
            }
            write_report(report, arguments.out)
            print(json.dumps(blocks[-1]), flush=True)
    print(f"A folder takes {ratio(blocks):.3f} times the sum of the same edits from memory.")
    done = sum(row["images"] for row in blocks) >= arguments.images
    return 0 if done and ratio(blocks) <= MOST else 1


def ratio(blocks: Sequence[dict[str, Any]]) -> float:
    """Seconds of an image of the folder in those of one from memory."""

    def seconds(way: str, count: str) -> float:
        return float(sum(row[way] for row in blocks) / sum(row[count] for row in blocks))

    return seconds("folder_s", "images") / seconds("memory_s", "from_memory")


def jobs_in(folder: Path, numbers: Sequence[int], size: int, steps: int) -> list[ImageJob]:
    """Images of the shapes world with noise, written into `folder`, and what is to be done with each."""
    items = held_out(max(numbers) + 1)

    def job(number: int) -> ImageJob:
        item = items[number]
        noise = np.random.default_rng(number).normal(0, 12, (size, size, 3))
        pixels = np.clip(np.asarray(item.render(size)) + noise, 0, 255).astype(np.uint8)
        source = folder / f"{number}.{'jpg' if number % 2 else 'png'}"
        Image.fromarray(pixels).save(source)
        request = EditRequest(item.instruction, steps=steps, seed=number, size=(size, size))
        return ImageJob(source, ImageFile(folder / f"{number}.edited.png"), request)

    with ThreadPoolExecutor() as threads:
        return list(threads.map(job, numbers))


def block(session: Session, jobs: Sequence[ImageJob], *, every: int, memory_first: bool) -> dict[str, Any]:
    """Seconds of every so many of `jobs` from memory, each edit by itself, and of all of them from files to files."""
    seconds: dict[str, float] = {}
    some = jobs[::every]
    for way in ("memory", "folder") if memory_first else ("folder", "memory"):
        seconds[way] = _from_memory(session, some) if way == "memory" else _from_folder(session, jobs)
    return {
        "images": len(jobs),
        "from_memory": len(some),
        "memory_s": seconds["memory"],
        "folder_s": seconds["folder"],
    }


def _from_memory(session: Session, jobs: Sequence[ImageJob]) -> float:
    requests = [job.request() for job in jobs]
    total = 0.0
    for request in requests:
        begin = time.perf_counter()
        session.edit(request, name="from memory")
        total += time.perf_counter() - begin
    return total


def _from_folder(session: Session, jobs: Sequence[ImageJob]) -> float:
    def saved(job: ImageJob, outcome: dict[str, Any] | KontextError) -> None:
        if isinstance(outcome, KontextError) or not job.file.path.exists():
            raise RuntimeError(f"{job.file.path} was not made: {outcome}")

    begin = time.perf_counter()
    do_jobs(session, jobs, saved)
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
