"""Compare each lossy technique on the edits of `tiny` with fewer steps at the same work.

    python -m research.schedules.study --out DIR [--items 200] [--seeds 2] [--batch 64] [--minutes 20] [--device cuda]

Every candidate edits the same items from the same noise. The judge scores each image, and its distance to the image of
the full run is measured. Work is counted for a 1024x1024 edit of the full-size architecture
(`kontext_fast.engine.flops`), not for `tiny`. `study.jsonl` in DIR has one line per candidate; the same command resumes
where it was stopped. At any time `--draw` writes `pareto.png`, `pareto.md` and `pareto.json`.

Another precision, checkpoint or number of items needs another DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from research.schedules.candidates import FULL, Candidate, candidates, work_of

Pixels = npt.NDArray[np.uint8]
Row = dict[str, Any]


@dataclass(frozen=True)
class Outputs:
    """The images of one candidate, in the order of items, then seeds."""

    pixels: Pixels
    """[n, height, width, 3]."""
    latents: npt.NDArray[np.float32]
    """[n, tokens, channels]."""
    works: list[float]
    """FLOP of each image at full size."""
    kinds: list[str] | None
    """Of the steps; None if the samples of a batch may differ."""
    seconds: float


class Study:
    """A loaded checkpoint, the items and their noise."""

    def __init__(self, checkpoint: str, device: str | None, items: int, seeds: int, batch: int) -> None:
        from kontext_fast.datasets.shapes import held_out
        from kontext_fast.pipeline.load import load

        self.loaded = load(checkpoint, device=device)
        self.pipe = self.loaded.pipe
        self.pipe.set_progress_bar_config(disable=True)
        self._pairs = [(index, item, seed) for index, item in enumerate(held_out(items)) for seed in range(seeds)]
        self._batch = batch

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(position of the item, seed) of every image."""
        return [(index, seed) for index, _, seed in self._pairs]

    def run(self, candidate: Candidate) -> Outputs:
        """All images of `candidate`, in batches of different items."""
        from kontext_fast.optimizations.acceleration import accelerate

        started = time.perf_counter()
        parts = []
        with accelerate(self.pipe, candidate.optimizations, quiet=True) as acceleration:
            for start in range(0, len(self._pairs), self._batch):
                pairs = self._pairs[start : start + self._batch]
                latents = self._latents(candidate, pairs)
                parts.append((latents.float().cpu().numpy(), self._decoded(latents), _works(candidate, acceleration)))
            kinds = None if candidate.of_each_sample else acceleration.last_step_kinds()
        works = [work for latents, _, part in parts for work in (part * len(latents) if len(part) == 1 else part)]
        return Outputs(
            np.concatenate([part[1] for part in parts]),
            np.concatenate([part[0] for part in parts]),
            works,
            None if kinds is None else list(kinds),
            time.perf_counter() - started,
        )

    def _latents(self, candidate: Candidate, pairs: Sequence[Any]) -> Any:
        """[B, tokens, channels] of one call of the pipeline, before they are decoded."""
        import torch

        from benchmarks.gpu.latents import latents_of

        side = self.pipe.vae.config.sample_size
        return latents_of(
            self.pipe,
            [item.render(side) for _, item, _ in pairs],
            [item.instruction for _, item, _ in pairs],
            steps=candidate.steps,
            generator=[torch.Generator().manual_seed(1_000_003 * seed + index) for index, _, seed in pairs],
        )

    def _decoded(self, latents: Any) -> Pixels:
        import torch

        pipe = self.pipe
        side, config = pipe.vae.config.sample_size, pipe.vae.config
        with torch.no_grad():
            unpacked = pipe._unpack_latents(latents, side, side, pipe.vae_scale_factor)
            decoded = pipe.vae.decode(unpacked / config.scaling_factor + config.shift_factor, return_dict=False)[0]
        images = pipe.image_processor.postprocess(decoded, output_type="np")
        pixels: Pixels = (images * 255).round().astype(np.uint8)
        return pixels


def _works(candidate: Candidate, acceleration: Any) -> list[float]:
    """Work of every sample of the last call, or a single number if all samples ran the same steps."""
    if not candidate.of_each_sample:
        kinds = acceleration.last_step_kinds()
        return [work_of(kinds, tests_first_block=candidate.tests_first_block).total]
    (counts,) = next(facts["computed_steps"] for facts in acceleration.facts.values() if "computed_steps" in facts)
    return [
        work_of(
            ["full"] * count + ["skipped"] * (candidate.steps - count), tests_first_block=candidate.tests_first_block
        ).total
        for count in counts
    ]


@cache
def _items(count: int) -> Any:
    from kontext_fast.datasets.shapes import held_out

    return held_out(count)


def judged(pixels: Pixels, pairs: list[tuple[int, int]], items: int) -> list[Row]:
    """The judge's scores of each of `pixels`; runs in a process of its own, without torch."""
    from kontext_fast.datasets.shapes.judge import judge

    rows = []
    for image, (index, seed) in zip(pixels, pairs, strict=True):
        item = _items(items)[index]
        verdict = judge(Image.fromarray(image), item)
        facts = {"item": item.id, "seed": seed, "kind": item.kind, "open": item.open}
        rows.append({**facts, "done": verdict.done, "kept": verdict.kept})
    return rows


class StudyFile:
    """The lines of a study on disk."""

    def __init__(self, folder: Path, setup: dict[str, Any]) -> None:
        """Continue a study of the same `setup`; exits if the folder holds another study."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "study.jsonl"
        lines = read_lines(self._file)
        if lines and lines[0]["setup"] != setup:
            sys.exit(f"{folder} holds another study ({lines[0]['setup']}); give --out another folder.")
        if not lines:
            self._file.write_text("")
            self.add({"setup": setup})
        self.done = {json.dumps(line["candidate"], sort_keys=True) for line in lines[1:]}

    def add(self, line: dict[str, Any]) -> None:
        """Append a line; it is on disk when this returns."""
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_lines(file: Path) -> list[dict[str, Any]]:
    """All complete lines; an incomplete last line is removed from the file."""
    if not file.is_file():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(file, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _line(candidate: Candidate, outputs: Outputs, full: Outputs, rows: list[Row]) -> dict[str, Any]:
    """The line of `candidate`, with the distance of each image to that of the full run."""
    pixels = np.sqrt(((outputs.pixels / 255.0 - full.pixels / 255.0) ** 2).mean((1, 2, 3)))
    distances = np.linalg.norm((outputs.latents - full.latents).reshape(len(rows), -1), axis=1)
    latents = distances / np.linalg.norm(full.latents.reshape(len(rows), -1), axis=1)
    for row, pixel, latent, work in zip(rows, pixels, latents, outputs.works, strict=True):
        row |= {"pixel_distance": float(pixel), "latent_distance": float(latent), "work": work}
    return {"candidate": candidate.identity(), "kinds": outputs.kinds, "seconds": outputs.seconds, "rows": rows}


def _full(study: Study, full: Candidate, folder: Path) -> Outputs:
    """The full run, from the folder of the study if it is stored there."""
    file = folder / "full.npz"
    if file.is_file():
        stored = np.load(file)
        kinds = ["full"] * full.steps
        return Outputs(stored["pixels"], stored["latents"], stored["works"].tolist(), kinds, float(stored["seconds"]))
    outputs = study.run(full)
    unfinished = file.with_suffix(".part.npz")
    arrays = {"pixels": outputs.pixels, "latents": outputs.latents}
    np.savez(unfinished, **arrays, works=np.array(outputs.works), seconds=np.array(outputs.seconds))
    unfinished.replace(file)
    return outputs


def run(study: Study, chosen: list[Candidate], file: StudyFile, arguments: argparse.Namespace) -> None:
    """Run, judge and store one candidate after the other; images are judged while the next candidate runs."""
    deadline = time.monotonic() + 60 * arguments.minutes
    full = _full(study, chosen[0], arguments.out)
    todo = [candidate for candidate in chosen if json.dumps(candidate.identity(), sort_keys=True) not in file.done]
    pairs, items = study.pairs, arguments.items
    with ProcessPoolExecutor(arguments.judges, mp_context=get_context("spawn")) as pool:

        def submit(outputs: Outputs) -> list[Future[list[Row]]]:
            parts = np.array_split(np.arange(len(pairs)), min(len(pairs), 2 * arguments.judges))
            return [
                pool.submit(judged, outputs.pixels[part], [pairs[index] for index in part], items) for part in parts
            ]

        waiting: list[tuple[Candidate, Outputs, list[Future[list[Row]]]]] = []

        def store() -> None:
            candidate, outputs, futures = waiting.pop(0)
            line = _line(candidate, outputs, full, [row for future in futures for row in future.result()])
            file.add(line)
            accepted = np.mean([row["done"] and row["kept"] for row in line["rows"]])
            distance = np.mean([row["pixel_distance"] for row in line["rows"]])
            print(
                f"{candidate.family:18} {candidate.name:46} work {np.mean(outputs.works) / np.mean(full.works):5.1%} "
                f"accepted {accepted:6.1%} distance {distance:.4f} in {outputs.seconds:.1f} s",
                flush=True,
            )

        for index, candidate in enumerate(todo):
            if time.monotonic() > deadline:
                print(f"the time is over; {len(todo) - index} candidates are left; run the same command to continue")
                break
            outputs = full if candidate.family == FULL else study.run(candidate)
            waiting.append((candidate, outputs, submit(outputs)))
            if len(waiting) > 1:
                store()
        while waiting:
            store()


def _chosen(arguments: argparse.Namespace) -> Iterator[Candidate]:
    from kontext_fast.optimizations.techniques.engine import Engine

    families = None if arguments.families is None else {FULL, *arguments.families.split(",")}
    for candidate in candidates(arguments.steps, Engine(precision=arguments.precision)):
        if families is None or candidate.family in families:
            yield candidate


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--device", help="default: the first GPU, else the CPU")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=28, help="of the full run")
    parser.add_argument("--batch", type=int, default=64, help="images per call")
    parser.add_argument("--precision", choices=("bf16", "fp8"), default="bf16", help="of the engine")
    parser.add_argument("--families", help="comma-separated: fewer steps,step_reuse,first_block_cache,...")
    parser.add_argument("--first", type=int, help="maximum number of candidates; the most informative come first")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no candidate after this time")
    parser.add_argument("--judges", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="processes that judge")
    parser.add_argument("--draw", action="store_true", help="only write the table and the chart of the stored lines")
    return parser.parse_args()


def main() -> int:
    """Run the study, then draw it."""
    from research.schedules.picture import write_all

    arguments = _arguments()
    if not arguments.draw:
        from benchmarks.gpu.latents import GUIDANCE

        study = Study(arguments.checkpoint, arguments.device, arguments.items, arguments.seeds, arguments.batch)
        facts = study.loaded.facts
        names = ("items", "seeds", "steps", "precision", "batch")
        setup = {name: getattr(arguments, name) for name in names}
        setup |= {"checkpoint": facts.name, "weights_sha256": facts.weights_sha256, "dtype": facts.dtype}
        setup |= {"device": study.pipe.transformer.device.type, "guidance": GUIDANCE}
        run(study, list(_chosen(arguments))[: arguments.first], StudyFile(arguments.out, setup), arguments)
    print(write_all(read_lines(arguments.out / "study.jsonl"), arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
