"""What the billing models are told of the rows of a benchmark, and of load tests."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from kontext_fast.analysis.benchmark import AnalyzedGroup, analyze_benchmark
from kontext_fast.cost.work import AS_SERVED, PresetWork, preset_works
from kontext_fast.records.schema import LoadTest, ResultFile
from kontext_fast.stats.intervals import Estimate
from tests.cost.gpu_records import gpu_result, gpu_run
from tests.records.builder import result, timed
from tests.report.test_served_latency import load_record


def group_of(records: ResultFile) -> AnalyzedGroup:
    (group,) = analyze_benchmark(records)
    return group


def works(records: ResultFile, load_s: float | None = None) -> dict[str, PresetWork]:
    return {work.preset: work for work in preset_works(group_of(records), load_s)}


def loaded(**changes: object) -> PresetWork:
    record = load_record()
    assert isinstance(record.load_test, LoadTest)
    test = record.load_test.model_copy(update=changes)
    return works(result([record.model_copy(update={"load_test": test})]))["turbo"]


def test_card_time_under_load_is_that_of_served_images() -> None:
    served = loaded()
    assert served.work is not None
    in_time = sum(1 + 2 * number / 179 <= 2.5 for number in range(180))
    assert served.work.seconds.value == pytest.approx(400 / in_time)
    assert (served.work.load_s, served.work.prepare_s, served.work.cold_start_s) == (None, None, None)
    assert served.work.run_ids == ("turbo-0",)
    assert served.work.busy_share == 0.75
    assert served.work.images_per_call == 1
    assert (served.note, served.row.preset) == (None, "turbo")
    assert served.labels[-1] == AS_SERVED
    assert served.work.highest_load(0.6) == 1.0
    # Busy all the time: it still holds its idle time, so no headroom is added.
    busy = loaded(busy_s=500.0).work
    assert busy is not None
    assert busy.busy_share == math.nextafter(1.0, 0.0)
    assert busy.highest_load(0.6) == 1.0


def test_load_test_without_an_image_in_time_has_no_work() -> None:
    late = loaded(deadline_s=0.5)
    assert (late.work, late.note, late.preset) == (None, "a load test served no image in time", "turbo")


def test_peak_is_the_most_that_was_counted() -> None:
    of = works(result([gpu_run("baseline", 0, peak_gib=36.0, process_gib=40.0), gpu_run("classic", 0, peak_gib=30.0)]))
    assert of["baseline"].peak_bytes == 40 * 2**30
    assert of["classic"].peak_bytes == 30 * 2**30
    assert works(result([timed("baseline", 0, [1.0, 1.0])]))["baseline"].peak_bytes is None


def test_loading_that_was_measured_is_part_of_a_cold_start() -> None:
    group = group_of(gpu_result(rounds=1))
    row = replace(works(gpu_result(rounds=1))["classic"].row, load=Estimate(30.0, None, 1))
    (read,) = preset_works(replace(group, rows=(row,), checkpoint=None))
    assert read.work is not None
    assert read.work.load_s == 30.0


def test_preparation_is_not_below_what_applying_takes() -> None:
    classic = works(gpu_result(rounds=1))["classic"].work
    assert classic is not None
    assert (classic.load_s, classic.prepare_s, classic.busy_share) == (0.0, 1.0 + 204.0 - 4.0, 1.0)
    assert classic.highest_load(0.6) == 0.6
    row = replace(works(gpu_result(rounds=1))["classic"].row, first_call=None)
    of = replace(group_of(gpu_result(rounds=1)), rows=(row,))
    (unknown,) = preset_works(of)
    assert unknown.work is not None
    assert unknown.work.prepare_s is None
    assert works(gpu_result(rounds=1), 7.0)["classic"].work is not None
    given = works(gpu_result(rounds=1), 7.0)["classic"].work
    assert given is not None
    assert given.load_s == 7.0
