"""Synthetic records for tests. Every value is made up; only the shape is that of a real bench."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from kontext_fast.records.schema import (
    AppliedOptimization,
    Checkpoint,
    Measurement,
    Memory,
    Record,
    ResultFile,
    Sample,
    Score,
    Status,
    StepKind,
    StoredItem,
    Verification,
    Workload,
)
from kontext_fast.records.store import ResultStore
from kontext_fast.verify.margins import Margins, read_margins

MACHINE = {"cpu": "Imaginary CPU 9000", "packages": {"torch": "0.0.0"}, "device": "cpu"}
TINY = Checkpoint(name="tiny", kind="tiny", weights_sha256="0" * 64, dtype="float32", transformer_parameters=10_000_000)
RANDOM = Checkpoint(
    name="random", kind="random", weights_sha256=None, dtype="bfloat16", transformer_parameters=11_900_000_000
)


def item(name: str, image: str | None = None) -> StoredItem:
    return StoredItem(id=name, instruction=f"make the circle of {name} blue", image=image, kind="recolor", open=False)


def workload(items: Sequence[str] = ("a", "b"), **changes: Any) -> Workload:
    values: dict[str, Any] = {
        "mode": "edit",
        "width": 128,
        "height": 128,
        "reference_width": 128,
        "reference_height": 128,
        "text_tokens": 48,
        "image_tokens": 64,
        "reference_tokens": 64,
        "steps": 4,
        "guidance": 2.5,
        "true_cfg": 1.0,
        "batch": 1,
        "items": tuple(items),
        "seeds": (0,),
    }
    return Workload(**(values | changes))


def sample(
    item: str,
    wall_s: float,
    *,
    warmup: bool = False,
    skipped: int = 0,
    steps: int = 4,
    images: Sequence[str] = (),
    memory: Memory | None = None,
    seed: int = 0,
) -> Sample:
    """The steps take 80 % of the wall time, the other stages 5 % each; the last `skipped` steps are not computed."""
    kinds: tuple[StepKind, ...] = ("full",) * (steps - skipped) + ("skipped",) * skipped
    return Sample(
        item=item,
        seed=seed,
        warmup=warmup,
        wall_s=wall_s,
        stages_s={
            "text_encode": 0.05 * wall_s,
            "vae_encode": 0.05 * wall_s,
            "denoise": 0.8 * wall_s,
            "vae_decode": 0.05 * wall_s,
        },
        steps_s=tuple(0.8 * wall_s / steps for _ in range(steps)),
        step_kinds=kinds,
        memory=memory or Memory(host_rss_peak_bytes=2**30),
        images=tuple(images),
    )


def record(
    preset: str,
    round_: int,
    samples: Sequence[Sample] = (),
    *,
    status: Status = "ok",
    reason: str | None = None,
    of: Workload | None = None,
    **changes: Any,
) -> Record:
    """One run. Without samples it has no measurement, as a run that ended before its first call."""
    measurements = (
        (Measurement(workload=of or workload(), first_call_s=9.0, samples=tuple(samples)),) if samples else ()
    )
    values: dict[str, Any] = {
        "run_id": f"{preset}-{round_}",
        "created_at": "2001-02-03T04:05:06+00:00",
        "preset": preset,
        "plan": () if preset == "baseline" else (AppliedOptimization(name=preset, effect="lossy"),),
        "checkpoint": TINY,
        "environment": MACHINE,
        "round": round_,
        "order": round_,
        "status": status,
        "reason": reason,
        "load_s": 3.0 + round_,
        "apply_s": 0.5,
        "measurements": measurements,
    }
    return Record(**(values | changes))


def timed(preset: str, round_: int, walls: Sequence[float], **changes: Any) -> Record:
    """A run that measured items a and b in turn, after one warm-up a thousand times as slow."""
    samples = [sample("a", 1000 * walls[0], warmup=True)]
    samples += [sample("ab"[i % 2], wall, skipped=changes.get("skipped", 0)) for i, wall in enumerate(walls)]
    return record(preset, round_, samples, **{k: v for k, v in changes.items() if k != "skipped"})


def result(records: Sequence[Record], items: Sequence[StoredItem] | None = None) -> ResultFile:
    return ResultFile(
        kontext_fast_version="0.0.0",
        command="kontext bench --suite quick",
        suite="quick",
        suite_sha256="0" * 64,
        seed=0,
        items=tuple(items if items is not None else (item("a"), item("b"))),
        records=tuple(records),
    )


def stored_verification(margins: Margins | None = None, **changes: Any) -> Verification:
    """What a result file says of a verification, with the margins of the package if no others are given."""
    margins = margins or read_margins()
    usual = {
        "dataset": "mine", "steps": 28, "guidance": 2.5, "seeds": (0, 1), "batch": 2, "control_items": (),
        "margins": margins.model_dump(mode="json"), "margins_sha256": margins.sha256,
    }  # fmt: skip
    return Verification(**{**usual, **changes})


def judged(item: str, image: str, *, done: bool, kept: bool, seed: int = 0) -> tuple[Score, ...]:
    values = {"judge_done": done, "judge_kept": kept}
    note = None if done and kept else "the circle is still red"
    return tuple(
        Score(item=item, seed=seed, image=image, metric=metric, value=value, note=note)
        for metric, value in values.items()
    )


def full(store: ResultStore, rounds: int = 3) -> ResultFile:
    """A bench with images and scores: two presets that ran, one refused, one that crashed in its last round."""
    pictures = {name: _picture(store, color) for name, color in (("a", "red"), ("b", "green"))}
    items = [item(name, digest) for name, digest in pictures.items()]
    records = []
    for round_ in range(rounds):
        drift = 1 + 0.02 * round_
        for preset, wall, skipped, colors in (
            ("baseline", 1.0, 0, ("blue", "navy")),
            ("cache", 0.5, 2, ("teal", "cyan")),
            ("fragile", 0.9, 0, ("gold", "pink")),
        ):
            if preset == "fragile" and round_ == rounds - 1:
                reason = "The process was killed by signal 11."
                records.append(record(preset, round_, status="crash", reason=reason, load_s=None, checkpoint=None))
                continue
            noise = 0.004 * (round_ - 1) if preset == "cache" else 0.0
            outputs = [_picture(store, color) for color in colors]
            samples = [sample("a", 100.0, warmup=True)] + [
                sample(name, wall * (drift + noise), skipped=skipped, images=[output])
                for name, output in zip("ab", outputs, strict=True)
            ]
            scores = judged("a", outputs[0], done=True, kept=True) + judged(
                "b", outputs[1], done=preset != "cache", kept=True
            )
            records.append(record(preset, round_, samples, scores=scores))
        records.append(
            record(
                "compile",
                round_,
                status="refused",
                reason="There is no C++ compiler: install g++.",
                checkpoint=None,
                load_s=None,
            )
        )
    return result(records, items)


def _picture(store: ResultStore, color: str) -> str:
    return store.put_image(Image.new("RGB", (128, 128), color))
