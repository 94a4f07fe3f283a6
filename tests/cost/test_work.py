"""What the billing models are told of the rows of a benchmark, and of load tests."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from kontext_fast.analysis.benchmark import AnalyzedGroup, analyze_benchmark
from kontext_fast.analysis.rows import EMULATED_TIME
from kontext_fast.cost.work import AS_SERVED, PresetWork, paired_half_s, preset_works
from kontext_fast.records.schema import EMULATED, AppliedOptimization, LoadTest, ResultFile
from kontext_fast.stats.intervals import Estimate, mean_estimate
from tests.cost.gpu_records import gpu_result, gpu_run
from tests.records.builder import record, result, sample, timed, workload
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


def test_several_load_tests_count_alike() -> None:
    record = load_record()
    assert record.load_test is not None
    longer = record.load_test.model_copy(update={"busy_s": 200.0, "duration_s": 800.0})
    served = works(result([record, record.model_copy(update={"run_id": "turbo-1", "load_test": longer})]))["turbo"]
    assert served.work is not None
    assert served.work.busy_share == pytest.approx((0.75 + 0.25) / 2)
    alone = loaded().work
    assert alone is not None
    assert served.work.seconds.value == pytest.approx(1.5 * alone.seconds.value)


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
    (unknown,) = preset_works(replace(group, rows=(replace(row, load=None),), checkpoint=None))
    assert unknown.work is not None
    assert unknown.work.load_s is None


def test_preparation_is_not_below_what_applying_takes() -> None:
    classic = works(gpu_result(rounds=1))["classic"].work
    assert classic is not None
    assert (classic.load_s, classic.prepare_s, classic.busy_share) == (0.0, 1.0 + 204.0 - 4.0, 1.0)
    assert classic.highest_load(0.6) == 0.6
    row = works(gpu_result(rounds=1))["classic"].row
    (quick,) = preset_works(replace(group_of(gpu_result(rounds=1)), rows=(replace(row, first_call=row.apply),)))
    assert quick.work is not None
    assert quick.work.prepare_s == 1.0
    row = replace(row, first_call=None)
    of = replace(group_of(gpu_result(rounds=1)), rows=(row,))
    (unknown,) = preset_works(of)
    assert unknown.work is not None
    assert unknown.work.prepare_s is None
    assert works(gpu_result(rounds=1), 7.0)["classic"].work is not None
    given = works(gpu_result(rounds=1), 7.0)["classic"].work
    assert given is not None
    assert given.load_s == 7.0


def on_two_gpus(records: ResultFile, *presets: str) -> ResultFile:
    """What ran without any optimization says nothing of GPUs, and is one GPU's."""
    plan = (AppliedOptimization(name="engine", effect="numeric", parameters={"gpus": 2}),)
    two = [run.model_copy(update={"plan": plan}) if run.preset in presets else run for run in records.records]
    return records.model_copy(update={"records": tuple(two)})


def test_time_of_a_call_on_two_gpus_is_that_of_both() -> None:
    one, two = (works(records, 30.0) for records in (gpu_result(), on_two_gpus(gpu_result(), "classic")))
    for preset, gpus in (("baseline", 1), ("classic", 2)):
        single, several = one[preset].work, two[preset].work
        assert single is not None
        assert several is not None
        assert (single.gpus, several.gpus) == (1, gpus)
        assert several.seconds.value == gpus * single.seconds.value
        assert several.seconds.interval == pytest.approx([gpus * end for end in single.seconds.interval or ()])
        assert (several.load_s, several.prepare_s) == (gpus * 30.0, gpus * (single.prepare_s or 0))
        assert several.run_ids == tuple(f"{preset}-{round_}" for round_ in range(3))
    assert one["classic"].labels == ()
    assert two["classic"].labels == ("time of 2 GPUs: a second that passes counts 2 times",)


def test_calls_of_a_batch_make_its_images() -> None:
    samples = [sample(item, 4.0) for item in "ab"]
    read = works(result([record("baseline", 0, samples, of=workload(batch=4))]))["baseline"]
    assert read.work is not None
    assert read.work.images_per_call == 4


def test_preset_without_a_time_of_its_own_has_no_work() -> None:
    """Neither where it was refused, nor where its kernels were emulated, which took a time."""
    emulated = [run.model_copy(update={"labels": (EMULATED,)}) for run in gpu_result().records]
    of = works(result(emulated))
    refused = timed("baseline", 0, [1.0, 1.0]), record("fp8", 0, status="refused", reason="Not here.")
    for read, note in ((of["classic"], EMULATED_TIME), (works(result(refused))["fp8"], "refused: Not here.")):
        assert (read.preset, read.work, read.note) == (read.row.preset, None, note)
    assert of["classic"].row.by_round
    assert paired_half_s(works(gpu_result())["baseline"], of["classic"]) is None


def half_width(values: list[float]) -> float:
    interval = mean_estimate(values).interval
    assert interval is not None
    return (interval[1] - interval[0]) / 2


def test_saved_seconds_are_paired_by_round() -> None:
    """Rounds that only one of the two has do not count, and GPUs that make a call together count all."""
    records = gpu_result()
    longer = works(result([*records.records, gpu_run("baseline", 9)]))
    assert paired_half_s(longer["baseline"], longer["classic"]) == pytest.approx(half_width([6, 6.12, 6.24]))
    for presets, saved in ((("baseline", "classic"), [12, 12.24, 12.48]), (("classic",), [2, 2.04, 2.08])):
        of = works(on_two_gpus(records, *presets))
        assert paired_half_s(of["baseline"], of["classic"]) == pytest.approx(half_width(saved))


def test_saved_seconds_of_several_cards_are_those_of_each() -> None:
    """Rounds of one card are no independent values."""
    runs = [
        run.model_copy(
            update={"environment": {**run.environment, "gpu": {"name": "H200", "uuid_sha256": str(run.round // 2)}}}
        )
        for run in gpu_result(rounds=6).records
    ]
    of = works(result(runs))
    assert paired_half_s(of["baseline"], of["classic"]) == pytest.approx(half_width([6.06, 6.3, 6.54]))


@pytest.mark.filterwarnings("error")
def test_too_few_shared_rounds_have_no_paired_interval() -> None:
    two = works(gpu_result(rounds=2))
    assert paired_half_s(two["baseline"], two["classic"]) is None
    apart = works(result([gpu_run("baseline", 0), gpu_run("classic", 1)]))
    assert paired_half_s(apart["baseline"], apart["classic"]) is None
