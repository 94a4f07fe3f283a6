from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from kontext_fast.analysis.benchmark import analyze_benchmark
from kontext_fast.cost.analysis import NO_PRICE, GroupCost, PresetCost, Question, _per_image, group_cost
from kontext_fast.cost.billing import Demand
from kontext_fast.cost.prices import PriceTable, load_prices
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import CONTROL, EMULATED, AppliedOptimization, ResultFile
from tests.cost.gpu_records import ROUNDS, SECONDS, TODAY, gpu_result, gpu_run, work
from tests.records.builder import record, result, timed

QUESTION = Question(demand=Demand(images_per_day=3600), today=TODAY, price="2.0")


def analysed(records: ResultFile, **changes: Any) -> GroupCost:
    (group,) = analyze_benchmark(records)
    return group_cost(group, load_prices(), replace(QUESTION, **changes))


def presets(group: GroupCost) -> dict[str, PresetCost]:
    return {preset.preset: preset for preset in group.presets}


def process_values(preset: str) -> np.ndarray[Any, Any]:
    return SECONDS[preset] * (1 + 0.02 * np.arange(ROUNDS))


def test_costs_equal_raw_samples() -> None:
    """Computed here a second time, with scipy, from the times that the records were made of."""
    for name, preset in presets(analysed(gpu_result())).items():
        values = process_values(name) * 2.0
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert preset.cost is not None
        assert preset.cost.per_day.value == pytest.approx(values.mean())
        assert preset.cost.per_day.interval == pytest.approx((expected.low, expected.high))
        assert preset.cost.basis.run_ids == tuple(f"{name}-{round_}" for round_ in range(ROUNDS))


def test_savings_are_paired_by_round() -> None:
    saved = presets(analysed(gpu_result()))["classic"].savings_per_month
    values = (process_values("baseline") - process_values("classic")) * 2.0 * 365 / 12
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert saved is not None
    assert saved.value == pytest.approx(values.mean())
    assert saved.interval == pytest.approx((expected.low, expected.high))
    assert presets(analysed(gpu_result()))["baseline"].savings_per_month is None


@pytest.mark.parametrize("rounds", [1, 2])
def test_too_few_rounds_give_cost_without_interval(rounds: int) -> None:
    classic = presets(analysed(gpu_result(rounds=rounds)))["classic"]
    assert classic.cost is not None
    assert classic.cost.per_month.interval is None
    assert classic.savings_per_month is not None
    assert classic.savings_per_month.interval is None


def test_preparation_is_apply_and_first_call_overhead() -> None:
    """Random weights are drawn on the GPU, so what loading took is none of the weights that a reader has."""
    classic = presets(analysed(gpu_result(rounds=1)))["classic"]
    assert classic.cold_start_s == 1.0 + 204.0 - 4.0
    assert presets(analysed(gpu_result(rounds=1), load_s=30.0))["classic"].cold_start_s == 30.0 + 1.0 + 204.0 - 4.0
    assert classic.images_to_repay_start == pytest.approx(((204 - 4) - (12 - 10)) / (10 - 4))


def test_default_price_is_typical_for_the_measured_card() -> None:
    group = analysed(gpu_result(), price=None)
    assert group.card == "H200"
    assert group.price == load_prices().typical("H200", "on-demand")


def test_a_cpu_has_no_price() -> None:
    group = analysed(result([timed("baseline", 0, [1.0, 1.0])]), price=None)
    assert group.refusal == NO_PRICE == "no price for this machine"
    assert [preset.cost for preset in group.presets] == [None]
    assert group.presets[0].seconds_per_image is not None


def test_typed_price_applies_to_any_machine() -> None:
    group = analysed(result([timed("baseline", 0, [1.0, 1.0])]), price="0.36")
    assert group.presets[0].cost is not None
    assert group.presets[0].cost.per_image.value == pytest.approx(0.0001)


@pytest.mark.parametrize("device", ["NVIDIA H100 80GB HBM3", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "Some CPU"])
def test_price_of_another_card_is_refused(device: str) -> None:
    with pytest.raises(InvalidInput, match="lambda-h100-pcie is for H100 PCIe"):
        analysed(gpu_result(device=device), price="lambda-h100-pcie")
    assert analysed(gpu_result(device="NVIDIA H100 PCIe"), price="lambda-h100-pcie").price is not None


def test_image_price_is_not_a_card_price() -> None:
    with pytest.raises(InvalidInput, match="not of a GPU"):
        analysed(gpu_result(), price="bfl-kontext-pro")


def test_price_of_card_with_too_little_memory_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"held 30\.0 GiB .* 24 GiB"):
        analysed(gpu_result(device="NVIDIA GeForce RTX 4090", peak_gib=30.0), price=None)


def test_reserved_billing_needs_a_reserved_price() -> None:
    refused = analysed(gpu_result(device="NVIDIA H100 NVL"), price=None, billing="reserved")
    assert refused.refusal is not None
    assert "no reserved price for H100 NVL" in refused.refusal
    priced = analysed(gpu_result(), price=None, billing="reserved")
    assert priced.basis is not None
    assert priced.basis.price.kind == "reserved"
    assert presets(priced)["baseline"].cost is not None


def test_an_emulated_kernel_is_not_a_cost() -> None:
    records = result([gpu_run("baseline", 0), gpu_run("classic", 0, labels=(EMULATED,))])
    classic = presets(analysed(records))["classic"]
    assert classic.cost is None
    assert classic.savings_per_month is None
    assert "emulated" in (classic.note or "")


def test_failed_presets_have_a_cost_row_with_reason() -> None:
    failed = record("compile", 0, status="refused", reason="There is no compiler: install g++.", checkpoint=None)
    group = presets(analysed(result([gpu_run("baseline", 0), failed.model_copy(update={"environment": {}})])))
    assert group["compile"].cost is None
    assert "install g++" in (group["compile"].note or "")


def test_without_baseline_nothing_is_saved() -> None:
    for names in (("classic",), ("compile", "classic")):
        classic = presets(analysed(result([gpu_run(name, 0) for name in names])))["classic"]
        assert classic.cost is not None
        assert classic.savings_per_month is None


def test_time_of_an_image_is_its_share_of_the_call() -> None:
    (group,) = analyze_benchmark(gpu_result())
    assert group.workload is not None
    of_four = replace(group, workload=group.workload.model_copy(update={"batch": 4}))
    single, shared = (
        presets(group_cost(each, load_prices(), QUESTION))["classic"].seconds_per_image for each in (group, of_four)
    )
    assert single is not None
    assert single.interval is not None
    assert single.interval[0] < single.value < single.interval[1]
    assert single.n == ROUNDS
    assert shared is not None
    assert (shared.value, shared.n) == (single.value / 4, single.n)
    assert shared.interval == pytest.approx([bound / 4 for bound in single.interval])


def test_licence_without_a_fixed_price_adds_nothing() -> None:
    """Its price depends on who asks; the row is there for its terms."""
    (group,) = analyze_benchmark(gpu_result())
    shipped = load_prices()
    (licence,) = shipped.of_kind("licence")
    rows = tuple(row for row in shipped.rows if row is not licence)
    unpriced = licence.model_copy(update={"usd_per_month": None})
    free, open_ = (
        presets(group_cost(group, PriceTable(table), replace(QUESTION, billing="always-on")))["classic"].crossovers
        for table in (rows, (*rows, unpriced))
    )
    assert free == open_ != ()
    fixed = PriceTable((*rows, licence.model_copy(update={"usd_per_month": 1000.0})))
    paid = presets(group_cost(group, fixed, replace(QUESTION, billing="by-use", price="0.1")))["classic"].crossovers
    unpaid = presets(group_cost(group, PriceTable(rows), replace(QUESTION, billing="by-use", price="0.1")))["classic"]
    apis = {row.id for row in fixed.apis()}
    for with_licence, without in zip(paid, unpaid.crossovers, strict=True):
        assert (with_licence.images_per_day > without.images_per_day) == (with_licence.instead_of in apis)


def test_presets_of_a_group_are_found_by_name() -> None:
    group = analysed(gpu_result())
    assert group.of("classic") == presets(group)["classic"]
    assert group.of("nothing") is None
    assert group.work_of("nothing") is None
    found = group.work_of("classic")
    assert found is not None
    assert found.preset == "classic"


def test_seconds_of_an_image_are_never_below_zero() -> None:
    for low, expected in ((-1.0, 0.0), (0.5, 0.25)):
        estimate = _per_image(work(2.0, (low, 5.0), images_per_call=2))
        assert estimate is not None
        assert (estimate.value, estimate.interval) == (1.0, (expected, 2.5))


def test_crossovers_name_both_sides() -> None:
    crossings = presets(analysed(gpu_result(), price=None))["classic"].crossovers
    against = {crossing.instead_of for crossing in crossings}
    assert {row.id for row in load_prices().apis()} <= against
    assert any(crossing.cheaper.startswith("always-on at ") for crossing in crossings)


@pytest.mark.parametrize(
    ("rho_max", "always_on", "reserved"), [(0.5, False, False), (0.7, False, True), (1.0, True, True)]
)
def test_crossover_needs_a_fleet_with_room(rho_max: float, always_on: bool, reserved: bool) -> None:
    """A fleet that may be busy half of the time is full before it is the cheaper way."""
    crossings = presets(analysed(gpu_result(), price=None, rho_max=rho_max))["classic"].crossovers
    reached = {crossing.cheaper.split()[0]: crossing.images_per_day < np.inf for crossing in crossings}
    assert (reached["always-on"], reached["reserved"]) == (always_on, reserved)


def test_control_is_not_priced() -> None:
    again = [
        run.model_copy(update={"preset": CONTROL, "run_id": f"again-{run.round}"})
        for run in gpu_result().records
        if run.preset == "baseline"
    ]
    priced = analysed(result([*gpu_result().records, *again]))
    assert [preset.preset for preset in priced.presets] == ["baseline", "compile", "classic"]


def test_calls_of_two_gpus_cost_twice() -> None:
    """In every way of billing; a fleet holds whole pairs."""
    plan = (AppliedOptimization(name="engine", effect="numeric", parameters={"gpus": 2}),)
    one = gpu_result()
    two = one.model_copy(
        update={
            "records": tuple(
                run.model_copy(update={"plan": plan}) if run.preset == "classic" else run for run in one.records
            )
        }
    )
    for billing in ("by-use", "always-on"):
        before, after = (presets(analysed(records, billing=billing)) for records in (one, two))
        once, twice = before["classic"].cost, after["classic"].cost
        assert once is not None
        assert twice is not None
        assert twice.per_image.value == pytest.approx(2 * once.per_image.value)
        assert twice.gpus % 2 == 0
        assert before["baseline"].cost == after["baseline"].cost
    saved = presets(analysed(two))["classic"].savings_per_month
    values = (process_values("baseline") - 2 * process_values("classic")) * 2.0 * 365 / 12
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert saved is not None
    assert saved.value == pytest.approx(values.mean())
    assert saved.interval == pytest.approx((interval.low, interval.high))
    assert any("2 GPUs" in label for label in presets(analysed(two))["classic"].labels)
