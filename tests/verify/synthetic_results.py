"""A verification of rendered outputs, as a model that has learned the shapes world would make them.

Baseline draws the target, each seed with a little noise of its own. A preset is a function that spoils an output. The
scores come from the real metrics on the stored images; only the images are synthetic. The metrics of CLIP, which takes
longer than all others together, have tests of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from kontext_fast.datasets.shapes import ShapesItem, held_out
from kontext_fast.metrics.base import Control, Setting, discover
from kontext_fast.metrics.scorer import Scorer
from kontext_fast.records.schema import Arm, ArmRole, Output, Record, ResultFile, StoredItem
from kontext_fast.records.store import ResultStore
from kontext_fast.verify.controls import FLOOR_ARMS, degrade
from kontext_fast.verify.journal import Journal
from kontext_fast.verify.margins import Margins, read_margins
from kontext_fast.verify.recorder import score_arms, stored_outputs
from tests.datasets.negative_examples import extra_object
from tests.records.builder import MACHINE, TINY, stored_verification

Make = Callable[[ShapesItem, Image.Image, int], Image.Image]
"""From an item, baseline's output and the index of the item to an output."""

SEEDS = (0, 1)


def drawn(item: ShapesItem, seed: int) -> Image.Image:
    """The target as baseline draws it with `seed`: a little blurred, and not twice the same."""
    noise = np.random.default_rng([int(item.id, 16), seed]).normal(0, 4, (128, 128, 3))
    return _shifted(item.target.filter(ImageFilter.GaussianBlur(0.3)), noise)


def _shifted(image: Image.Image, by: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.asarray(image, float) + by, 0, 255).round().astype(np.uint8))


def noisy(strength: float, seed: int = 7) -> Make:
    """Every output moved by noise; below 0.5 few pixels change at all."""

    def make(item: ShapesItem, image: Image.Image, index: int) -> Image.Image:
        rng = np.random.default_rng([seed, index])
        return _shifted(image, rng.normal(0, strength, (128, 128, 3)))

    return make


def losing(every: int) -> Make:
    """In every so many items an extra shape appears."""

    def make(item: ShapesItem, image: Image.Image, index: int) -> Image.Image:
        worse = extra_object(item) if index % every == 0 else None
        if worse is None:
            return noisy(0.8)(item, image, index)
        # With the noise of the seed.
        return _shifted(worse, np.asarray(image, float) - np.asarray(item.target, float))

    return make


def untouched(item: ShapesItem, image: Image.Image, index: int) -> Image.Image:
    return image


def verification(
    folder: Path,
    presets: Mapping[str, Make],
    *,
    items: int = 60,
    control_items: int = 16,
    margins: Margins | None = None,
    gray: bool = False,
    fewer: Mapping[str, Make] | None = None,
    edits_s: Mapping[str, tuple[float, ...]] | None = None,
) -> ResultStore:
    """A scored verification; `gray` makes baseline draw gray images, in which the judge can detect nothing.

    `fewer` are arms of fewer steps, and `edits_s` the times of arms.
    """
    margins = margins or read_margins()
    store = ResultStore(folder)
    chosen = sorted(held_out(items), key=lambda item: item.id)
    few = chosen[:control_items]

    def of_baseline(item: ShapesItem, seed: int) -> Image.Image:
        return Image.new("RGB", (128, 128), (120 + seed,) * 3) if gray else drawn(item, seed)

    def record(name: str, role: ArmRole, of: Sequence[ShapesItem], make: Make, preset: str | None = None) -> Record:
        outputs = [
            Output(
                item=item.id,
                seed=seed,
                image=store.put_image(make(item, of_baseline(item, seed), index)),
                step_kinds=("full", "full", "skipped", "full"),
            )
            for index, item in enumerate(of)
            for seed in SEEDS
        ]
        return Record(
            run_id=name,
            created_at="2001-02-03T04:05:06+00:00",
            preset=preset or name,
            plan=(),
            checkpoint=TINY,
            environment=MACHINE,
            round=0,
            order=0,
            status="ok",
            arm=Arm(name=name, role=role, preset=preset),
            outputs=tuple(outputs),
            edits_s=(edits_s or {}).get(name, ()),
        )

    records = [record("baseline", "baseline", chosen, untouched)]
    for name, make in presets.items():
        records.append(record(name, "preset", chosen, make))
        records.append(record(f"{name}, other order", "order", few, make, preset=name))
    records += [record(name, "steps", chosen, make) for name, make in (fewer or {}).items()]
    records += [
        record(name, "floor", few, noisy(0.6, seed=index) if index else untouched)
        for index, name in enumerate(FLOOR_ARMS)
    ]
    swapped = {item.id: few[index - 1] for index, item in enumerate(few)}
    controls: dict[Control, Make] = {
        Control.HALF_STEPS: noisy(9),
        Control.CACHE_X4: noisy(12),
        Control.SWAPPED: lambda item, image, index: swapped[item.id].target,
        Control.BLUR: lambda item, image, index: degrade(image, Control.BLUR, item.image),
        Control.JPEG: lambda item, image, index: degrade(image, Control.JPEG, item.image),
        Control.UNEDITED: lambda item, image, index: item.image,
    }
    records += [record(control.value, "control", few, make) for control, make in controls.items()]

    metrics = [metric for name, metric in discover().items() if not name.startswith("clip_")]
    scorer = Scorer(Setting(has_judge=True), chosen, metrics)
    by_name = {record.arm.name: record for record in records if record.arm}
    by_id = {item.id: item for item in chosen}
    outputs = {name: stored_outputs(name, by_name, by_id, store, Journal(folder)) for name in by_name}
    scored = [
        by_name[name].model_copy(update={"scores": tuple(scores)}) for name, scores in score_arms(scorer, outputs)
    ]
    store.write(
        ResultFile(
            kontext_fast_version="0.0.0",
            command="kontext verify",
            suite="verify",
            suite_sha256=margins.sha256,
            seed=0,
            items=tuple(
                StoredItem(
                    id=item.id,
                    instruction=item.instruction,
                    image=store.put_image(item.image),
                    target=store.put_image(item.target),
                    kind=item.kind,
                    open=item.open,
                )
                for item in chosen
            ),
            records=tuple(scored),
            verification=stored_verification(
                margins,
                dataset="shapes",
                seeds=SEEDS,
                control_items=tuple(item.id for item in few),
                metrics=scorer.facts,
            ),
        )
    )
    return store
