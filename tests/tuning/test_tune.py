"""A whole tuning of a small pipeline: what it writes, that it goes on after a stop, and what its verdicts say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kontext_fast
from kontext_fast.datasets.shapes.dataset import held_out
from kontext_fast.engine.solver import Solver
from kontext_fast.errors import GateFailed, InvalidInput, Refused
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.optimizations.preset_file import read_provenance
from kontext_fast.optimizations.presets import find_preset
from kontext_fast.optimizations.weight_identity import identity_of
from kontext_fast.pipeline.load import load
from kontext_fast.tuning.fit import Products
from kontext_fast.tuning.parts import Part, Parts, shapes_parts
from kontext_fast.tuning.precisions import BlockPrecision, EditTimes, Mixture, seconds_of
from kontext_fast.tuning.proof import Verdict, ratio, verdict
from kontext_fast.tuning.request import TuneRequest, TuneResult
from kontext_fast.tuning.run import Tuning
from kontext_fast.tuning.solver_fit import DensePart, fit_rows
from kontext_fast.tuning.store import Store
from kontext_fast.tuning.stored_runs import StoredRuns
from kontext_fast.tuning.tune import tune
from kontext_fast.verify.converged import Array, Closeness, closeness, relative_distances
from kontext_fast.verify.paths import PathRunner
from tests.pipelines import SIDE, picture, small_pipeline

OPTIONS: dict[str, Any] = {
    "evaluations": (3,), "grid": 12, "reference": 32, "steps": 4, "size": (SIDE, SIDE), "images_per_call": 8
}  # fmt: skip


class Stopped(BaseException):
    """As an interrupt, which no handler of errors catches."""


def parts_of(fit: int = 8, choose: int = 2, confirmed: int = 8) -> Parts:
    items = held_out(fit + choose + confirmed)
    seeds = range(len(items))
    cuts = (slice(0, fit), slice(fit, fit + choose), slice(fit + choose, None))
    return Parts(*(Part(items[cut], list(seeds[cut])) for cut in cuts))


def stored(folder: Path) -> Store:
    return Store(folder, json.loads((folder / "request.json").read_text()), resume=True)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small_pipeline()


@pytest.fixture(scope="module")
def tuned(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[str]]:
    folder = tmp_path_factory.mktemp("tuned")
    sentences: list[str] = []
    return folder, tune(pipe, parts_of(), folder, **OPTIONS, checkpoint="small", say=sentences.append), sentences


def test_the_fit_beats_plain_steps_of_unseen_items(tuned: Any) -> None:
    _, result, sentences = tuned
    (point,) = result.points
    distances = point.distances
    assert point.verdict is Verdict.PASSES
    assert distances["fitted"].mean() < 0.7 * distances["plain steps"].mean()
    assert {"step_reuse", "UniPC", "DPM++", "Adams-Bashforth"} < set(distances)
    assert len(distances["fitted"]) == 8
    assert "evaluations of single edits" in sentences[0]


def test_the_distances_of_every_held_out_item_are_stored(tuned: Any) -> None:
    folder, result, _ = tuned
    samples = json.loads((folder / "tuning.json").read_text())["samples"]
    assert samples["3"]["UniPC"] == result.points[0].distances["UniPC"].tolist()
    assert len(samples["baseline"]["in float32"]) == 8


def test_baseline_in_float32_is_what_diffusers_runs(tuned: Any, pipe: Any) -> None:
    """With weights in float32 one is not run again for the other, so it has to be the same."""
    folder, result, _ = tuned
    exact, parts = result.baseline["in float32"], parts_of()
    tuning = Tuning(pipe, parts, TuneRequest(**OPTIONS), folder, resume=True, say=lambda _: None, on_progress=None)
    as_run = tuning._runs.as_diffusers_runs_it([stored(folder / "work").arrays("held_out-0000", dict)])
    np.testing.assert_allclose(as_run, exact, rtol=0.02)
    assert result.baseline["reference error"].mean() < exact.mean()


def test_the_computed_steps_of_presets_stand_beside_the_fit(tuned: Any) -> None:
    _, result, _ = tuned
    beside = result.points[0].as_data(result.baseline)["ratio_of_fitted_to"]
    assert {"steps of fast", "steps of turbo"} < set(beside)
    assert len(result.baseline["steps of turbo"]) == 8


def test_every_point_is_written_as_soon_as_it_is_proved(tuned: Any, pipe: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(tuned[0], tmp_path / "more")
    for file in ("3.toml", "tuning.json"):
        (folder / file).unlink()

    def stop_at_the_second(stage: str, _done: int, _total: int) -> None:
        if stage == "proof of 4 evaluations":
            raise Stopped

    options = {**OPTIONS, "evaluations": (3, 4)}
    with pytest.raises(Stopped):
        tune(pipe, parts_of(), folder, **options, resume=True, on_progress=stop_at_the_second)
    assert [point["evaluations"] for point in json.loads((folder / "tuning.json").read_text())["points"]] == [3]
    assert (folder / "3.toml").is_file()


def test_float32_needs_weights_in_float32(tmp_path: Path) -> None:
    pipe = small_pipeline()
    pipe.transformer.to(torch.bfloat16)
    with pytest.raises(InvalidInput, match="float32 needs weights in float32"):
        tune(pipe, parts_of(), tmp_path, **OPTIONS, precision="float32")


def test_the_preset_file_runs_on_these_weights_alone(tuned: Any, pipe: Any) -> None:
    folder, result, _ = tuned
    assert [file.name for file in result.files] == ["3.toml"]
    preset = find_preset(str(folder / "3.toml"))
    assert preset.name == "tuned-small-3"
    provenance = read_provenance(folder / "3.toml")
    assert provenance is not None
    assert provenance.scores["distances"]["fitted"]["mean"] == pytest.approx(
        result.points[0].distances["fitted"].mean()
    )
    steps: list[int] = []
    with accelerate(pipe, preset, quiet=True):
        pipe(image=picture(), prompt="make it red", height=SIDE, width=SIDE, max_area=SIDE * SIDE, _auto_resize=False,
             num_inference_steps=4, guidance_scale=2.5, max_sequence_length=48, output_type="latent",
             generator=torch.Generator().manual_seed(1),
             callback_on_step_end=lambda _p, step, _t, _k: steps.append(step) or {})  # fmt: skip
    assert steps == [0, 1, 2]
    with pytest.raises(InvalidInput, match="these are other weights"):
        accelerate(small_pipeline(double=2), preset, quiet=True)


def test_a_stop_at_any_moment_and_resume_give_the_same_file(tuned: Any, pipe: Any, tmp_path: Path) -> None:
    folder, _, _ = tuned
    stops = iter(np.random.default_rng(0).integers(4, 12, 100))
    left = [next(stops)]

    def interrupt(_stage: str, _done: int, _total: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            left[0] = next(stops)
            raise Stopped

    interruptions = 0
    for _ in range(100):
        try:
            tune(pipe, parts_of(), tmp_path, **OPTIONS, checkpoint="small", resume=True, on_progress=interrupt)
        except Stopped:
            interruptions += 1
            continue
        break
    assert interruptions >= 2
    assert (tmp_path / "3.toml").read_bytes() == (folder / "3.toml").read_bytes()


def shuffled_solver(pipe: Any, folder: Path, fit: Part, options: dict[str, Any], chosen: list[int]) -> Solver:
    """Fitted as in `folder`, but the velocities of one item with the states and the end of another."""
    store = stored(folder / "work")
    arrays = store.arrays("fit-0000", dict)
    states, target = np.roll(arrays["states"][1:], 1, axis=1), np.roll(arrays["target"], 1, axis=0)
    states = np.concatenate([arrays["states"][:1], states])
    shuffled = DensePart(fit, states, target, Products(*(arrays[name] for name in ("gram", "cross", "squares"))))
    levels = store.data(f"levels-{options['grid']:03}", list)
    with runner_of(pipe, options) as runner:
        return fit_rows(runner, [shuffled], levels, chosen)[0]


@contextmanager
def runner_of(pipe: Any, options: dict[str, Any]) -> Iterator[PathRunner]:
    size = options.get("size")
    runner = PathRunner(pipe, steps=options["steps"], guidance=2.5, size=size, on_progress=lambda _: None)
    try:
        yield runner
    finally:
        runner.close()


def distances_of(pipe: Any, folder: Path, held_out: Part, options: dict[str, Any], solver: Solver) -> Array:
    with runner_of(pipe, options) as runner:
        final = runner.run(held_out.items, held_out.seeds, lambda _: solver).numpy()
    return relative_distances(final, stored(folder / "work").arrays("held_out-0000", dict)["target"])


def test_a_fit_to_shuffled_pairs_comes_less_near(tuned: Any, pipe: Any) -> None:
    folder, result, _ = tuned
    parts = parts_of()
    solver = shuffled_solver(pipe, folder, parts.fit, OPTIONS, [0, 4, 8])
    interval = ratio(
        distances_of(pipe, folder, parts.held_out, OPTIONS, solver), result.points[0].distances["fitted"]
    ).interval
    assert interval is not None
    assert interval[0] > 1.2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_fit_to_shuffled_pairs_fails_on_tiny(tmp_path: Path) -> None:
    """On weights that have learned something, unlike the cut ones, whose velocities hardly depend on the item."""
    pipe, parts = load("tiny", device="cpu").pipe, shapes_parts(items=10, held_out=8)
    options: dict[str, Any] = {"evaluations": (6,), "grid": 28, "reference": 56, "steps": 14}
    result = tune(pipe, parts, tmp_path, **options)
    (point,) = result.points
    assert point.verdict is Verdict.PASSES
    chosen = stored(tmp_path / "work").data("06-levels", list)[0]
    solver = shuffled_solver(pipe, tmp_path, parts.fit, options, chosen)
    reached = distances_of(pipe, tmp_path, parts.held_out, options, solver)
    error = result.baseline["reference error"]
    assert verdict(reached, point.distances["plain steps"], error) is Verdict.FAILS
    assert closeness(reached, result.baseline["in float32"], error, ratio_at_most=1) is Closeness.FARTHER


def test_seconds_that_cannot_be_had_or_measured_are_refused(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="with 2 evaluations already"):
        tune(pipe, parts_of(), tmp_path / "few", **OPTIONS, seconds=1e-6)
    for precision in ("fp8", "auto"):
        with pytest.raises(Refused, match="emulated on a CPU"):
            tune(pipe, parts_of(), tmp_path / precision, **OPTIONS, seconds=10, precision=precision)


def test_seconds_decide_the_evaluations_once(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed tuning goes on with the number that was measured first, however quick the machine is then."""
    request = TuneRequest(**OPTIONS, seconds=1.1)
    for seconds in ({"2": 1.0, "10": 1.8}, {"2": 0.1, "10": 0.2}):
        tuning = Tuning(pipe, parts_of(), request, tmp_path, resume=True, say=lambda _: None, on_progress=None)
        monkeypatch.setattr(tuning._runs, "_time_edits", lambda _, seconds=seconds: seconds)
        (mixture,) = tuning._mixtures()
        assert mixture == Mixture(3, "bf16")
        assert seconds_of(mixture, tuning._times) == pytest.approx(1.1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_mixture_of_precisions_is_chosen_and_runs(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the seconds of an imagined card, since a CPU emulates fp8: its rounding is the same."""
    times: dict[BlockPrecision, EditTimes] = {"fp8": EditTimes(0.5, 0.2), "bf16": EditTimes(0.5, 0.32)}
    monkeypatch.setattr(StoredRuns, "edit_times", lambda _, precision: times[precision])
    options = {**OPTIONS, "grid": 30, "reference": 48, "seconds": 1.5}
    result = tune(pipe, parts_of(), tmp_path, **options, precision="auto")
    (point,) = result.points
    assert result.seconds == {point.evaluations: pytest.approx(seconds_of(point.mixture, times))}
    assert result.seconds[point.evaluations] <= 1.5
    tried = {file.name for file in (tmp_path / "work").glob("*-candidate-0.json")}
    assert tried == {f"{key}-candidate-0.json" for key in ("04-fp8-0", "03-fp8-2", "03-bf16-0")}
    if file := result.file_of(point):
        preset = find_preset(str(file))
        assert preset.optimizations[:-1] == point.mixture.optimizations
        provenance = read_provenance(file)
        assert provenance is not None
        assert provenance.precision == point.mixture.words
        with accelerate(pipe, preset, quiet=True):
            pipe(image=picture(), prompt="make it red", height=SIDE, width=SIDE, max_area=SIDE * SIDE,
                 _auto_resize=False, num_inference_steps=4, max_sequence_length=48, output_type="latent")  # fmt: skip


def test_resuming_another_tuning_is_refused(tuned: Any, pipe: Any) -> None:
    folder, _, _ = tuned
    with pytest.raises(InvalidInput, match="other items, weights or options"):
        tune(pipe, parts_of(fit=9), folder, **OPTIONS, checkpoint="small", resume=True)
    with pytest.raises(InvalidInput, match="resume=True"):
        tune(pipe, parts_of(), folder, **OPTIONS, checkpoint="small")


def test_as_accurate_writes_what_is_shown_and_keeps_its_request(pipe: Any, tmp_path: Path) -> None:
    options = {**OPTIONS, "steps": 7, "grid": 18, "evaluations": (6,), "as_accurate": True}

    def asked() -> list[tuple[int, str]]:
        answers = json.loads((tmp_path / "tuning.json").read_text())["asked"]
        return [(answer["evaluations"], answer["closeness"]) for answer in answers]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kontext_fast.tuning.run.AS_ACCURATE_CONFIDENCE", 1 - 1e-12)
        with pytest.raises(GateFailed, match="not even 6 evaluations were shown"):
            tune(pipe, parts_of(), tmp_path, **options)
    assert asked() == [(6, "cannot tell")]
    assert not list(tmp_path.glob("*.toml"))

    result = tune(pipe, parts_of(), tmp_path, **options, resume=True)
    assert asked() == [(6, "no farther")]
    assert [file.name for file in result.files] == ["6.toml"]
    assert result.points[0].closeness is Closeness.NO_FARTHER


@pytest.mark.parametrize(
    ("precision", "chosen", "asked"),
    [
        ("bf16", Mixture(12, "bf16"), ["bf16 16", "bf16 14", "bf16 12", "bf16 11"]),
        (
            "auto",
            Mixture(14, "fp8", 5),
            ["bf16 16", "bf16 14", "bf16 12", "bf16 11", "fp8 16", "fp8, the last 2 in bf16 16",
             "fp8, the last 3 in bf16 16", "fp8, the last 5 in bf16 16", "fp8, the last 5 in bf16 14",
             "fp8, the last 5 in bf16 12"],
        ),
    ],
)  # fmt: skip
def test_as_accurate_goes_down_until_a_number_is_not_shown(
    pipe: Any, tmp_path: Path, precision: Any, chosen: Mixture, asked: list[str]
) -> None:
    """Of each precision on its own; below the first one that is not shown nothing is asked, though 9 would pass."""
    request = TuneRequest(precision=precision, as_accurate=True)
    tuning = Tuning(pipe, parts_of(), request, tmp_path, resume=False, say=lambda _: None, on_progress=None)
    times: dict[BlockPrecision, EditTimes] = {"fp8": EditTimes(0.5, 0.1), "bf16": EditTimes(0.5, 0.2)}
    passing = {"bf16": (16, 14, 12, 9), "fp8, the last 5 in bf16": (16, 14)}
    baseline = np.exp(np.random.default_rng(0).normal(-3, 0.5, 50))
    result = TuneResult(tmp_path, request, baseline={"in float32": baseline, "reference error": np.zeros(50)})

    def reached(mixture: Mixture, _solver: Any) -> Array:
        passes = mixture.evaluations in passing.get(mixture.words, ())
        return baseline * (0.8 if passes else 1.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning._runs, "edit_times", times.__getitem__)
        mixtures = tuning._mixtures()
    solver: Any = None
    answers = tuning._as_accurate(mixtures, lambda _: (solver, baseline), reached, result)
    assert [mixture for mixture, _ in answers] == [chosen]
    assert [f"{answer['precision']} {answer['evaluations']}" for answer in result.asked] == asked


def test_weights_with_adapters_are_those_that_a_preset_sees(tmp_path: Path) -> None:
    from peft import LoraConfig

    pipe = small_pipeline()
    plain = identity_of(pipe.transformer)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["attn.to_q"], init_lora_weights=False))
    tuning = Tuning(
        pipe, parts_of(), TuneRequest(**OPTIONS), tmp_path, resume=False, say=lambda _: None, on_progress=None
    )
    assert tuning.weights != plain
    assert not tuning.weights.differs(plain)
    with accelerate(pipe, "faithful", quiet=True):
        assert identity_of(pipe.transformer) == tuning.weights


def test_own_pairs_are_items_and_too_few_cannot_tell(pipe: Any, tmp_path: Path) -> None:
    pairs = [(picture(number), "make it red") for number in range(12)]
    with pytest.raises(GateFailed, match="your items has 12 usable items of different images"):
        kontext_fast.tune(pipe, [*pairs, pairs[0], (pairs[0][0], "blur it")], tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("items", "options", "complaint"),
    [
        (["photo.jpg"], {}, "Each item is a pair"),
        ("nowhere.jsonl", {}, "no data set nowhere.jsonl"),
        ([], {"evaluation": (7,)}, "evaluations"),
        ([], {"precision": "fp4"}, "choose float32, bf16, fp8"),
    ],
)
def test_mistakes_of_a_call_are_named(
    pipe: Any, tmp_path: Path, items: Any, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        kontext_fast.tune(pipe, items, tmp_path / "out", **options)
