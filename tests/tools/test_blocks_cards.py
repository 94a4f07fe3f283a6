"""Passages on full steps and first images, from records of a card that was never there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kontext_fast.records.schema import GpuReadings, Record
from kontext_fast.report.model import build_report
from tests.records.builder import record, result, sample
from tests.report import suite_records
from tests.tools.project_records import CARD
from tools.docs.blocks import first_image, steps
from tools.docs.doc_context import NOTHING, DocContext
from tools.docs.result_tree import find_published


def context(folder: Path, records: Sequence[Record]) -> DocContext:
    on_the_card = [one.model_copy(update={"environment": CARD | {"gpu": LIMITED}}) for one in records]
    return DocContext(find_published(folder), build_report(result(on_the_card)))


LIMITED = {"name": "NVIDIA H200", "power_limit_w": 700.0, "clock_sm_max_mhz": 1980}


def readings(power_w: tuple[float | None, ...], *reasons: str) -> GpuReadings:
    several = (1500,) * len(power_w)
    return GpuReadings(
        at_s=tuple(map(float, range(len(power_w)))), power_w=power_w, clock_sm_mhz=several, clock_memory_mhz=several,
        temperature_c=several, throttle_reasons=reasons, energy_j=None, foreign_processes=0,
    )  # fmt: skip


def test_steps_block_shows_full_step_and_throttling(tmp_path: Path) -> None:
    watched = [
        sample("a", 2.0, skipped=2).model_copy(update={"gpu": readings((600.0, None, 700.0), "power cap")}),
        sample("b", 2.0, skipped=2).model_copy(update={"gpu": readings((650.0,), "heat", "power cap")}),
    ]
    # What is skipped is not a full step, and warm-ups do not count.
    hot = sample("a", 9.0, warmup=True).model_copy(update={"gpu": readings((9999.0,), "fire")})
    never = sample("a", 0.1, skipped=4)
    made = [
        record("baseline", 0, [sample("a", 4.0), sample("b", 4.0)]),
        record("turbo", 0, [hot, *watched], order=1),
        record("reader", 0, [never, never.model_copy(update={"item": "b"})], order=2),
    ]
    text = steps.render(context(tmp_path, made))
    assert "| `baseline` | 800 ms |  |  |  | 1 |" in text
    assert "| `turbo` | 400 ms | 650 W | 1500 MHz | power cap, heat | 1 |" in text
    assert "reader" not in text
    assert "The card's limits: 700 W, 1980 MHz." in text


def test_steps_block_without_gpu_is_empty(tmp_path: Path) -> None:
    assert steps.render(DocContext(find_published(tmp_path))) == NOTHING


def test_first_image_block_compares_first_and_later_calls(tmp_path: Path) -> None:
    text = first_image.render(context(tmp_path, suite_records.cold().records))
    rows = [line for line in text.splitlines() if line.startswith("| `compile`")]
    # First calls take 62, 63 and 64 s cold, and half of that at a size that was not seen.
    assert "| `compile` | cold | 128x128 | 0.500 s | 63.0 s | 1.00 s | 62.0 s | 3 |" in rows
    assert "| `compile` | cold | 256x128 |  | 31.5 s | 1.50 s | 30.0 s | 3 |" in rows
    assert "| `compile` | warm | 128x128 | 0.500 s | 9.00 s | 1.00 s | 8.00 s | 3 |" in rows
    assert len(rows) == 4
    assert "- NVIDIA H200" in text


def test_user_cache_runs_are_not_first_images(tmp_path: Path) -> None:
    usual = [record("baseline", 0, [sample("a", 4.0), sample("b", 4.0)])]
    assert first_image.render(context(tmp_path, usual)) == "Not measured on a GPU yet."
