"""Which planted faults a verdict calls a loss, and how often it calls one where nothing is wrong.

`python -m research.faults.study --out DIR` verifies every planted fault and every harmless change as a preset, on the
same items and seeds. Faults in finished pictures need no model: they are made from the outputs of a harmless change.
The verdicts are then computed at several numbers of items, with all rules and without those for single outputs, seeds
and declarations. `distances.json` keeps the distances to baseline of every output, so that another rule can be tried on
them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kontext_fast.datasets.base import Item
from kontext_fast.metrics.base import Role, Setting, discover
from kontext_fast.metrics.scorer import Scorer, StoredOutput
from kontext_fast.records.schema import AppliedOptimization, Arm, Output, Record, ResultFile
from kontext_fast.records.store import ResultStore, read_stored_image, write_atomically
from kontext_fast.verify.analysis import ArmScores, analyze
from kontext_fast.verify.conditions import CONDITION_ITEMS, condition_count
from kontext_fast.verify.controls import CONTROL_ITEMS, control_count
from kontext_fast.verify.journal import Journal
from kontext_fast.verify.margins import Margins, TailMargins
from kontext_fast.verify.recorder import score_arms
from kontext_fast.verify.request import Request, dataset_of
from kontext_fast.verify.run import Progress, verify
from kontext_fast.verify.verdict import decide
from research.faults.catalogue import FAULTS, HARMLESS_CHANGES
from research.faults.planting import HARMLESS, Fault, Pictures, Seen

ITEMS = (50, 100, 200)
BASE = "sums in the opposite order"
"""The harmless change whose outputs faults in finished pictures begin with."""


@dataclass(frozen=True)
class Answer:
    """What the verdict says of one fault at one number of items."""

    fault: str
    family: str
    items: int
    level: str
    reason: str
    before: str
    """The level without the rules for single outputs, seeds and declarations."""


def study(request: Request, out: Path, faults: Sequence[Fault], counts: Sequence[int], *, resume: bool) -> list[Answer]:
    """Verify `faults` in `out`, write `distances.json` there, and return the answers, fault by fault.

    Raises what `verify` raises.
    """
    pipelines = [fault for fault in faults if not isinstance(fault.plant, Pictures)]
    request = replace(request, presets=tuple(fault.preset for fault in pipelines))
    result = verify(request, out, resume=resume, command="research.faults.study", on_progress=_show)
    store = ResultStore(out)
    spoiled = [fault for fault in faults if isinstance(fault.plant, Pictures)]
    records = (*result.records, *_picture_records(spoiled, result, store, dataset_of(request).items))
    whole = result.model_copy(update={"records": records})
    write_atomically(out / "distances.json", json.dumps(distances(whole)).encode())
    return [answer for count in counts if count <= len(result.items) for answer in _answers(whole, count, faults)]


def distances(result: ResultFile) -> dict[str, dict[str, dict[str, list[float]]]]:
    """By metric, arm and item: the distances to baseline of each seed, with four digits; those between two seeds of
    baseline are `between seeds`."""
    arms = ArmScores(result.records)
    metrics = [metric for metric in discover().values() if metric.role is Role.FIDELITY and arms.measured(metric.name)]
    names = [record.arm.name for record in result.records if record.arm]
    by_metric = {
        metric.name: {"between seeds": arms.fidelity(metric).between_seeds}
        | {name: by_item for name in names if (by_item := arms.distances(metric, name))}
        for metric in metrics
    }
    return {
        metric: {
            arm: {item: [float(f"{value:.4g}") for value in values] for item, values in by_item.items()}
            for arm, by_item in by_arm.items()
        }
        for metric, by_arm in by_metric.items()
    }


def _picture_records(
    faults: Sequence[Fault], result: ResultFile, store: ResultStore, items: Sequence[Item]
) -> Iterator[Record]:
    """An arm for each fault in finished pictures, with its scores."""
    by_arm = {record.arm.name: record for record in result.records if record.arm}
    if not faults or BASE not in by_arm:
        return
    references = {(output.item, output.seed): output.image for output in by_arm["baseline"].outputs}
    by_id = {item.id: item for item in items}
    base, journal = by_arm[BASE], Journal(store.folder)
    scorer = Scorer(Setting(has_judge=bool(base.checkpoint and base.checkpoint.has_judge)), list(by_id.values()))
    for fault in faults:
        assert isinstance(fault.plant, Pictures)
        seen, outputs = Seen(), list[Output]()
        for output in base.outputs:
            if output.image is None:
                continue
            image = read_stored_image(store.image_path(output.image))
            source = np.asarray(by_id[output.item].image.convert("RGB").resize(image.size), np.float32)
            spoiled = store.put_image(fault.plant.next(image, source, seen))
            outputs.append(output.model_copy(update={"image": spoiled}))
        stored = [
            StoredOutput(
                item=by_id[output.item],
                seed=output.seed,
                image=output.image or "",
                file=store.image_path(output.image or ""),
                reference_file=store.image_path(references[output.item, output.seed] or ""),
                latents_file=journal.latents_file(BASE, output.item, output.seed),
                reference_latents_file=journal.latents_file("baseline", output.item, output.seed),
            )
            for output in outputs
        ]
        print(f"{fault.name}: scoring", flush=True)
        ((_, scores),) = score_arms(scorer, {fault.name: stored})
        yield base.model_copy(
            update={
                "run_id": fault.name,
                "preset": fault.name,
                "plan": (AppliedOptimization(name=fault.name, effect="numeric", parameters={}),),
                "arm": Arm(name=fault.name, role="preset"),
                "outputs": tuple(outputs),
                "scores": tuple(scores),
            }
        )


def _answers(result: ResultFile, count: int, faults: Sequence[Fault]) -> Iterator[Answer]:
    """The answers on the first `count` items."""
    analysis = analyze(first_items(result, count))
    families = {fault.name: fault.family for fault in faults}
    for preset in analysis.presets:
        verdict = preset.verdict
        before = verdict
        if preset.evidence is not None:
            evidence = replace(preset.evidence, repeats=(), seed_spreads={}, declares_rounding=False)
            before = decide(evidence, without_tails(analysis.margins))
        name = preset.preset
        yield Answer(name, families[name], count, verdict.level.value, verdict.reason, before.level.value)


def without_tails(margins: Margins) -> Margins:
    return margins.model_copy(update={"tail": TailMargins(factor=1e9)})


def first_items(result: ResultFile, count: int) -> ResultFile:
    """A verification as it would have been with fewer items, and so with fewer of the controls, but for which images
    share a call."""
    items = result.items[:count]
    every = {item.id for item in items}
    few = {item.id for item in items[: control_count(len(items), CONTROL_ITEMS)]}
    of_conditions = {item.id for item in items[: condition_count(len(items), CONDITION_ITEMS)]} & few
    kept_by_role = {"baseline": every, "preset": every, "condition": of_conditions}

    def of_fewer(record: Record) -> Record:
        kept = kept_by_role.get(record.arm.role, few) if record.arm else few
        outputs = tuple(output for output in record.outputs if output.item in kept)
        scores = tuple(score for score in record.scores if score.item in kept)
        return record.model_copy(update={"outputs": outputs, "scores": scores})

    return result.model_copy(update={"items": items, "records": tuple(map(of_fewer, result.records))})


def rates(answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """By family and number of items: how many there are, how many are called a loss, and were before."""
    table: dict[str, dict[str, Any]] = {}
    for answer in answers:
        row = table.setdefault(answer.family, {}).setdefault(str(answer.items), {"n": 0, "loss": 0, "before": 0})
        row["n"] += 1
        row["loss"] += answer.level == "L3"
        row["before"] += answer.before == "L3"
    return table


def _show(progress: Progress) -> None:
    left = "" if progress.left_s is None else f", {progress.left_s / 60:.0f} min left"
    print(f"{progress.arm}: {progress.done} of {progress.total}{left}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--items", type=int, default=max(ITEMS))
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--family", action="append", help="only these families, and what is harmless")
    parser.add_argument("--only", action="append", help="only these faults, and what the pictures begin with")
    parser.add_argument("--harmless", action="store_true", help="every harmless change, too, with --only")
    parser.add_argument("--harmless-only", action="store_true", help="for the rate of false alarms")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args(arguments)
    faults = [
        fault
        for fault in (*HARMLESS_CHANGES, *FAULTS)
        if fault.name == BASE
        or (fault.family == HARMLESS and (options.harmless or not options.only))
        or not (options.harmless_only or options.family or options.only)
        or fault.family in (options.family or ())
        or fault.name in (options.only or ())
    ]
    request = Request(
        presets=("faithful",),
        checkpoint=options.checkpoint,
        items=options.items,
        steps=options.steps,
        seed=options.seed,
        device=options.device,
    )
    counts = sorted({*(count for count in ITEMS if count <= options.items), options.items})
    answers = study(request, options.out, faults, counts, resume=options.resume)
    content = {
        "items": options.items,
        "seeds": request.seeds,
        "steps": options.steps,
        "seed": options.seed,
        "checkpoint": options.checkpoint,
        "rates": rates(answers),
        "answers": [asdict(answer) for answer in answers],
    }
    write_atomically(options.out / "faults.json", json.dumps(content, indent=1).encode())
    for answer in answers:
        levels = f"{answer.level} (before: {answer.before})"
        print(f"{answer.items:4d}  {answer.family:10s} {levels:34s} {answer.fault}: {answer.reason}")


if __name__ == "__main__":
    main()
