"""What a fitted solver is worth on `tiny` beyond what `kontext tune` says by itself.

    python -m research.tuning.study confirm FOLDER --out FILE   the presets of a tuning on 400 items of its own
    python -m research.tuning.study images FOLDER --out FILE    distances to the images of 28 steps; what a judge says
    python -m research.tuning.study calls --out FILE            tuned-10 and tuned-7 in calls unlike those of their fit
    python -m research.tuning.study kinds --out FILE            fitted to some kinds of edits, judged on the others
    python -m research.tuning.study shuffled --out FILE         fitted to the path of another item, which has to fail
    python -m research.tuning.study reference --out FILE        the converged reference beside a far finer one

FOLDER is what `kontext tune` wrote. FILE gets every row as soon as it is known. Everything runs in float32 unless
`--precision` says bf16 or fp8; without a GPU, give a small `--items`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from kontext_fast.datasets.shapes.dataset import held_out_captions
from kontext_fast.datasets.shapes.edits import EDIT_KINDS
from kontext_fast.datasets.shapes.judge import judge
from kontext_fast.engine.solver import Solver, adams_bashforth
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.presets import find_preset
from kontext_fast.optimizations.techniques.solver import FittedSolver
from kontext_fast.pipeline.load import load
from kontext_fast.tuning.fit import Products
from kontext_fast.tuning.parts import Part, Parts, shapes_parts
from kontext_fast.tuning.precisions import Mixture, path_runner
from kontext_fast.tuning.proof import Verdict, as_data, ratio, verdict
from kontext_fast.tuning.request import TuneRequest
from kontext_fast.tuning.run import FAITHFUL
from kontext_fast.tuning.schemes import PRESET_NAMES, Rule, steps_of_preset
from kontext_fast.tuning.solver_fit import DensePart, fit_rows
from kontext_fast.tuning.store import Store
from kontext_fast.tuning.tune import tune
from kontext_fast.verify.converged import Array, closeness, relative_distances
from kontext_fast.verify.converged_reference import Reference, converged_reference, reference_evaluations
from kontext_fast.verify.paths import PathRunner

Row = dict[str, Any]
_BATCH = 200
_FRESH_SEED = 1
"""Of items that no other tuning has: those of a tuning have 0."""
_EVALUATIONS = (7, 10)
_JUDGES = 4
_FINE = 896
"""Steps of Euler's method beside which a reference is judged."""


def main() -> int:
    """Run one part and store its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("folder", type=Path, nargs="?", help="of a tuning, for confirm and images")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the rows")
    parser.add_argument("--precision", choices=("float32", "bf16", "fp8"), default="float32")
    parser.add_argument("--device", help="default: the first GPU")
    parser.add_argument("--only", nargs="+", metavar="CALL", help="of calls: those whose names begin so")
    parser.add_argument("--items", type=int, default=400, help="that judge; a fit has 64")
    arguments = parser.parse_args()
    if arguments.folder is None and arguments.part in ("confirm", "images"):
        parser.error("give the folder of a tuning")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    dtype = "float32" if arguments.precision == "float32" else None
    study = Study(
        load("tiny", device=arguments.device, dtype=dtype).pipe, arguments.precision, arguments.items, arguments.folder,
        tuple(arguments.only or ("",)),
    )  # fmt: skip
    rows: list[Row] = []
    start = perf_counter()
    for row in PARTS[arguments.part](study):
        rows.append(row)
        print(json.dumps(row), flush=True)
        report = {"part": arguments.part, "precision": arguments.precision, "items": arguments.items}
        device = torch.cuda.get_device_name() if study.pipe._execution_device.type == "cuda" else "cpu"
        report |= {"device": device, "torch": torch.__version__, "seconds": perf_counter() - start, "rows": rows}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


@dataclass
class Study:
    """The checkpoint and what it is judged on."""

    pipe: Any
    precision: Any
    items: int
    folder: Path | None = None
    only: tuple[str, ...] = ("",)
    """Beginnings of the names of calls."""

    @property
    def request(self) -> TuneRequest:
        return TuneRequest(precision=self.precision)

    @property
    def applied(self) -> Sequence[Optimization]:
        """What a solver runs with."""
        return Mixture(1, self.precision).optimizations

    def part(self, seed: int = 0) -> Part:
        """Held-out items: those of a tuning with seed 0, or others."""
        return shapes_parts(items=8, held_out=self.items, seed=seed).held_out

    def solvers(self) -> dict[str, Solver]:
        """Of the preset files in the folder, by name."""
        assert self.folder is not None
        files = sorted(self.folder.glob("*.toml"), key=lambda file: int(file.stem))
        return {f"fitted, {file.stem}": solver_of(str(file)) for file in files}

    def run(
        self,
        part: Part,
        rules: Mapping[str, Rule],
        request: TuneRequest,
        applied: Sequence[Optimization],
        **more: Any,
    ) -> dict[str, np.ndarray]:
        """[I, N, C] the final latents of each rule."""
        with path_runner(self.pipe, applied, request, items=len(part), on_progress=_ignore, **more) as runner:
            return {
                name: _in_batches(part, lambda items, seeds, rule=rule: _numpy(runner.run(items, seeds, rule)))
                for name, rule in rules.items()
            }

    def compared(
        self, part: Part, solvers: Mapping[str, Solver], request: TuneRequest | None = None, **more: Any
    ) -> Iterable[Row]:
        """Each solver beside plain steps of as many evaluations and baseline, by distance to the reference."""
        request = request or self.request
        with path_runner(self.pipe, FAITHFUL, request, items=len(part), on_progress=_ignore, **more) as runner:
            plain_levels = {
                number: runner.levels(part.items, number) for number in {one.evaluations for one in solvers.values()}
            }
            baseline = _euler(runner, part, request.steps)
            references = _references(runner, part)
        target = np.concatenate([reference.target for reference in references])
        error = np.concatenate([reference.error for reference in references])
        in_float32 = relative_distances(baseline, target)
        for name, solver in solvers.items():
            plain = adams_bashforth(plain_levels[solver.evaluations], 1)
            rules: dict[str, Rule] = {"fitted": _always(solver), "plain steps": _always(plain)}
            latents = self.run(part, rules, request, self.applied, **more)
            distances = {rule: relative_distances(of_rule, target) for rule, of_rule in latents.items()}
            yield {"solver": name, "evaluations": solver.evaluations, **_judged(distances, in_float32, error)}


def confirm(study: Study) -> Iterable[Row]:
    """Solvers of a tuning on items that neither it nor any other has."""
    yield from study.compared(study.part(_FRESH_SEED), study.solvers())


def images(study: Study) -> Iterable[Row]:
    """How far each is from the images of 28 steps, and what the judge accepts of the decoded images."""
    part, request = study.part(), study.request
    fitted = study.solvers()
    with path_runner(study.pipe, FAITHFUL, request, items=len(part), on_progress=_ignore) as runner:
        levels = {steps: runner.levels(part.items, steps) for steps in (28, *(s.evaluations for s in fitted.values()))}
    plain = {f"plain steps, {number}": _always(adams_bashforth(levels[number], 1)) for number in levels}
    rules: dict[str, Rule] = {
        **plain,
        **{f"steps of {name}": steps_of_preset(name) for name in PRESET_NAMES},
        **{name: _always(solver) for name, solver in fitted.items()},
    }
    baseline = study.run(part, {"": plain["plain steps, 28"]}, request, FAITHFUL)[""]
    with ProcessPoolExecutor(_JUDGES, mp_context=get_context("spawn")) as pool:
        for name, rule in rules.items():
            latents = study.run(part, {name: rule}, request, study.applied)[name]
            accepted = np.array(list(pool.map(_accepted, decoded(study.pipe, latents), part.items, chunksize=20)))
            is_open = np.array([item.open for item in part.items])
            yield {
                "rule": name,
                "distances_to_28_steps": as_data({"": relative_distances(latents, baseline)})[""],
                "accepted": _share(accepted),
                "accepted_of_open": _share(accepted[is_open]),
                "accepted_of_single_answer": _share(accepted[~is_open]),
            }


def calls(study: Study) -> Iterable[Row]:
    """Field by field: what a call that differs from the fit loses."""
    part, request = study.part(), study.request
    solvers = {name: solver_of(name) for name in ("tuned-10", "tuned-7")}
    captions = held_out_captions(study.items)
    text_only = Part([cast("Any", _TextOnly(item.instruction)) for item in captions], part.seeds)
    variants: dict[str, tuple[Part, TuneRequest, dict[str, Any]]] = {
        "as fitted": (part, request, {}),
        **{
            f"size {width}x{height}": (part, replace(request, size=(width, height)), {})
            for width, height in ((192, 192), (160, 96), (96, 96))
        },
        **{
            f"true CFG {scale:g}": (part, request, {"true_cfg": scale, "negative": "make the background plain"})
            for scale in (1.5, 2.0)
        },
        **{f"{steps} steps": (part, replace(request, steps=steps), {}) for steps in (14, 40)},
        "text-to-image": (text_only, replace(request, size=(128, 128)), {}),
        **{f"guidance {value:g}": (part, replace(request, guidance=value), {}) for value in (1.0, 1.5, 2.0, 3.0, 4.0)},
    }
    weights = {name: tensor.clone() for name, tensor in study.pipe.transformer.state_dict().items()}
    for strength in (0.02, 0.1):
        if not f"low-rank change of {strength:g}".startswith(study.only):
            continue
        add_low_rank(study.pipe.transformer, strength)
        for row in study.compared(part, solvers):
            yield {"call": f"low-rank change of {strength:g}", **row}
        study.pipe.transformer.load_state_dict(weights)
    for name, (of_variant, of_request, more) in variants.items():
        if not name.startswith(study.only):
            continue
        for row in study.compared(of_variant, solvers, of_request, **more):
            yield {"call": name, **row}


def kinds(study: Study) -> Iterable[Row]:
    """The same held-out kinds of edits, after a fit to the others and after one to the same kinds."""
    half = len(EDIT_KINDS) // 2
    first, second = frozenset(EDIT_KINDS[:half]), frozenset(EDIT_KINDS[half:])
    parts = shapes_parts(items=160, held_out=study.items)
    for tested, others in ((second, first), (first, second)):
        held_out = _of_kinds(parts.held_out, tested)
        results = {}
        for fitted_to in (others, tested):
            fit = Parts(_of_kinds(parts.fit, fitted_to), _of_kinds(parts.choose, fitted_to), held_out)
            with tempfile.TemporaryDirectory() as folder:
                results[fitted_to] = tune(study.pipe, fit, folder, evaluations=_EVALUATIONS, precision=study.precision)
        for there, here in zip(results[others].points, results[tested].points, strict=True):
            distances = {
                "fitted to other kinds": there.distances["fitted"],
                "fitted to these kinds": here.distances["fitted"],
                "plain steps": here.distances["plain steps"],
            }
            yield {
                "tested": sorted(tested),
                "evaluations": there.evaluations,
                "verdict_of_other_kinds": there.verdict.value,
                "distances": as_data(distances),
                "ratio_of_other_to_these": _ratio(*list(distances.values())[:2]),
            }


def shuffled(study: Study) -> Iterable[Row]:
    """A negative control: velocities of one item, states and end of another."""
    parts = shapes_parts(items=64, held_out=study.items)
    with tempfile.TemporaryDirectory() as folder:
        result = tune(study.pipe, parts, folder, evaluations=_EVALUATIONS, precision=study.precision)
        work = Path(folder) / "work"
        store = Store(work, json.loads((work / "request.json").read_text()), resume=True)
        arrays = store.arrays("fit-0000", dict)
        states = np.concatenate([arrays["states"][:1], np.roll(arrays["states"][1:], 1, axis=1)])
        products = Products(*(np.asarray(arrays[name]) for name in ("gram", "cross", "squares")))
        dense = DensePart(parts.fit, states, np.roll(arrays["target"], 1, axis=0), products)
        levels = store.data(f"levels-{result.request.grid:03}", list)
        chosen = {number: store.data(f"{number:02}-levels", list)[0] for number in _EVALUATIONS}
    with path_runner(study.pipe, study.applied, study.request, items=len(parts.fit), on_progress=_ignore) as runner:
        solvers = {str(number): fit_rows(runner, [dense], levels, chosen[number])[0] for number in _EVALUATIONS}
    for row, point in zip(study.compared(parts.held_out, solvers), result.points, strict=True):
        yield {**row, "verdict_of_the_right_pairs": point.verdict.value}


def reference(study: Study) -> Iterable[Row]:
    """The converged reference beside other paths, judged by Euler's method with far more steps, extrapolated."""
    part = study.part(_FRESH_SEED)
    with path_runner(study.pipe, FAITHFUL, study.request, items=len(part), on_progress=_ignore) as runner:
        ends = {steps: _euler(runner, part, steps) for steps in (28, 56, 112, 224, _FINE // 2, _FINE)}
        truth = 2 * ends[_FINE] - ends[_FINE // 2]

        def row(path: str, evaluations: int, latents: np.ndarray) -> Row:
            figures = _figures(relative_distances(latents, truth))
            return {"path": path, "evaluations": evaluations, "distances": figures}

        stated = _references(runner, part)
        ours = np.concatenate([of_batch.target for of_batch in stated])
        error = np.concatenate([of_batch.error for of_batch in stated])
        yield row("converged reference", reference_evaluations(), ours)
        yield {"path": "its error as estimated", "distances": _figures(error)}
        for coarse, fine in ((28, 112), (112, 224), (224, _FINE // 2)):
            target = (fine * ends[fine] - coarse * ends[coarse]) / (fine - coarse)
            yield row(f"Euler's method, {coarse} and {fine} steps extrapolated", coarse + fine, target)
        for steps in (28, 56, 112, 224):
            yield row(f"Euler's method, {steps} steps", steps, ends[steps])
            levels = runner.levels(part.items, steps)
            dense = _in_batches(
                part,
                lambda items, seeds, levels=levels: _numpy(runner.dense(items, seeds, levels, keep=False).states[-1]),
            )
            yield row(f"third order, {steps} steps of a call", steps, dense)


PARTS: Mapping[str, Callable[[Study], Iterable[Row]]] = {
    "confirm": confirm, "images": images, "calls": calls, "kinds": kinds, "shuffled": shuffled, "reference": reference
}  # fmt: skip


def solver_of(preset: str) -> Solver:
    """The rule of a preset, by name or file."""
    fitted = next(part.fitted for part in find_preset(preset).optimizations if isinstance(part, FittedSolver))
    assert fitted is not None
    return fitted


def decoded(pipe: Any, latents: np.ndarray) -> list[Image.Image]:
    """Images of 128x128 pixels of packed latents [I, N, C]."""
    config, side, pictures = pipe.vae.config, pipe.vae.config.sample_size, []
    for start in range(0, len(latents), _BATCH):
        batch = torch.from_numpy(latents[start : start + _BATCH]).to(pipe._execution_device, pipe.vae.dtype)
        with torch.inference_mode():
            unpacked = pipe._unpack_latents(batch, side, side, pipe.vae_scale_factor)
            pixels = pipe.vae.decode(unpacked / config.scaling_factor + config.shift_factor, return_dict=False)[0]
        pictures += pipe.image_processor.postprocess(pixels.float(), output_type="pil")
    return pictures


def add_low_rank(transformer: Any, strength: float) -> None:
    """Add to every attention projection a random matrix of rank 4, with `strength` of its norm: what a LoRA is."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, module in transformer.named_modules():
            if isinstance(module, torch.nn.Linear) and ".attn." in name:
                rows, columns = module.weight.shape
                change = torch.randn(rows, 4, generator=generator) @ torch.randn(4, columns, generator=generator)
                change = change.to(module.weight) * (strength * module.weight.norm() / change.norm()).to(module.weight)
                module.weight += change


@dataclass(frozen=True)
class _TextOnly:
    """An item without an image."""

    instruction: str
    image = None


def _of_kinds(part: Part, chosen: frozenset[str]) -> Part:
    kept = [(item, seed) for item, seed in zip(part.items, part.seeds, strict=True) if item.kind in chosen]
    return Part([item for item, _ in kept], [seed for _, seed in kept])


def _judged(distances: Mapping[str, Array], baseline: Array, error: Array) -> Row:
    fitted, plain = distances["fitted"], distances["plain steps"]
    told: Verdict = verdict(fitted, plain, error)
    return {
        "verdict": told.value,
        "closeness": closeness(fitted, baseline, error, ratio_at_most=1).value,
        "distances": as_data({**distances, "baseline in float32": baseline, "reference error": error}),
        "ratio_to_plain_steps": _ratio(fitted, plain),
        "ratio_to_baseline": _ratio(fitted, baseline),
    }


def _ratio(values: Array, others: Array) -> Row:
    estimate = ratio(values, others)
    return {"value": estimate.value, "interval": estimate.interval}


def _share(accepted: np.ndarray) -> Row:
    return {"of": len(accepted), "accepted": int(accepted.sum())}


def _figures(distances: Array) -> Any:
    return as_data({"": distances})[""]


def _accepted(image: Image.Image, item: Any) -> bool:
    return judge(image, item).accepted


def _always(solver: Solver) -> Rule:
    return lambda _: solver


def _batches(part: Part) -> list[tuple[Sequence[Any], Sequence[int]]]:
    return [
        (part.items[start : start + _BATCH], part.seeds[start : start + _BATCH])
        for start in range(0, len(part), _BATCH)
    ]


def _in_batches(part: Part, compute: Callable[..., np.ndarray]) -> np.ndarray:
    return np.concatenate([compute(*batch) for batch in _batches(part)])


def _euler(runner: PathRunner, part: Part, steps: int) -> np.ndarray:
    return _in_batches(part, lambda items, seeds: _numpy(runner.euler(items, seeds, steps)))


def _references(runner: PathRunner, part: Part) -> list[Reference]:
    return [converged_reference(runner, *batch) for batch in _batches(part)]


def _numpy(latents: torch.Tensor) -> np.ndarray:
    return np.asarray(latents.float().cpu().numpy())


def _ignore(_: int) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())
