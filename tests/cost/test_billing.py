from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kontext_fast.cost import BILLINGS, Billing
from kontext_fast.cost.billing import DAYS_PER_MONTH, Demand, Tariff, cost, gpus_needed, images_per_hour
from kontext_fast.errors import InvalidInput
from kontext_fast.stats.intervals import Estimate
from tests.cost.gpu_records import TODAY, price, tariff, work

SECONDS = st.floats(0.05, 600)
VOLUMES = st.floats(1, 1e6)
PRICES = st.floats(0.05, 100)
SHARES = st.floats(1 / 24, 1)
LOADS = st.floats(0.05, 1)
BATCHES = st.integers(1, 8)
MORE = st.floats(1, 50)
HOW = st.sampled_from(BILLINGS)


def month(billing: Billing, seconds: float, volume: float, usd: float, **changes: Any) -> float:
    demand = Demand(images_per_day=volume, peak_share=changes.pop("share", 1 / 24), cold_starts_per_day=2)
    of = work(seconds, load_s=40.0, images_per_call=changes.pop("batch", 1))
    return cost(of, demand, tariff(billing, usd, **changes), today=TODAY).per_month.value


@given(HOW, SECONDS, VOLUMES, PRICES, SHARES, MORE)
def test_cost_grows_with_time_volume_and_price(
    billing: Billing, seconds: float, volume: float, usd: float, share: float, more: float
) -> None:
    before = month(billing, seconds, volume, usd, share=share)
    assert month(billing, seconds * more, volume, usd, share=share) >= before
    assert month(billing, seconds, volume * more, usd, share=share) >= before
    assert month(billing, seconds, volume, usd * more, share=share) == pytest.approx(before * more)


@given(SECONDS, VOLUMES, PRICES)
def test_by_use_costs_every_second_and_image(seconds: float, volume: float, usd: float) -> None:
    before = month("by-use", seconds, volume, usd)
    assert month("by-use", seconds * 1.01, volume, usd) > before
    assert month("by-use", seconds, volume * 1.01, usd) > before


@given(st.sampled_from(["always-on", "reserved"]), SECONDS, VOLUMES, SHARES, st.floats(0.01, 1))
def test_cost_per_image_rises_when_fleet_is_used_less(
    billing: Billing, seconds: float, volume: float, share: float, less: float
) -> None:
    plan = tariff(billing)
    full = cost(work(seconds), Demand(images_per_day=volume, peak_share=share), plan, today=TODAY)
    emptier = cost(work(seconds), Demand(images_per_day=volume * less, peak_share=share), plan, today=TODAY)
    assume(emptier.gpus == full.gpus)
    assert emptier.utilization <= full.utilization
    assert emptier.per_image.value >= full.per_image.value * (1 - 1e-12)
    assert emptier.per_month.value == full.per_month.value


@given(SECONDS, VOLUMES, SHARES, LOADS, BATCHES, st.integers(1, 8))
def test_fleet_suffices_at_peak_with_no_spare_gpu(
    seconds: float, volume: float, share: float, load: float, batch: int, sold_by: int
) -> None:
    peak = volume * share
    gpus = gpus_needed(seconds, batch, peak, rho_max=load, sold_by=sold_by)
    one = images_per_hour(seconds, batch) * load
    assert gpus * one >= peak * (1 - 1e-9)
    assert gpus % sold_by == 0
    assert gpus == sold_by or (gpus - sold_by) * one < peak * (1 + 1e-9)


@given(SECONDS, st.integers(1, 50), PRICES, BATCHES)
def test_by_use_equals_always_on_at_full_utilization(seconds: float, gpus: int, usd: float, batch: int) -> None:
    volume = 24 * gpus * images_per_hour(seconds, batch)
    demand = Demand(images_per_day=volume)
    of = work(seconds, images_per_call=batch)
    used = cost(of, demand, tariff("by-use", usd), today=TODAY)
    fleet = cost(of, demand, tariff("always-on", usd, rho_max=1.0), today=TODAY)
    assert fleet.gpus == gpus
    assert fleet.utilization == pytest.approx(1)
    assert used.per_month.value == pytest.approx(fleet.per_month.value)


@given(HOW, SECONDS, VOLUMES, PRICES, SHARES)
def test_cost_command_parts_agree(billing: Billing, seconds: float, volume: float, usd: float, share: float) -> None:
    demand = Demand(images_per_day=volume, peak_share=share)
    priced = cost(work(seconds), demand, tariff(billing, usd), today=TODAY)
    assert priced.per_day.value == pytest.approx(priced.per_image.value * volume)
    assert priced.per_month.value == pytest.approx(priced.per_day.value * DAYS_PER_MONTH)
    assert 0 < priced.utilization <= 1 + 1e-9
    floor = usd * seconds / 3600
    assert priced.per_image.value == pytest.approx(floor / priced.utilization)


def test_by_use_is_busy_hours_times_price() -> None:
    demand = Demand(images_per_day=3600, days_per_month=30)
    priced = cost(work(2.0), demand, tariff("by-use", 5.0), today=TODAY)
    assert (priced.per_day.value, priced.per_month.value) == (10.0, 300.0)
    assert priced.basis.days_per_month == 30


def test_batches_share_a_call() -> None:
    demand = Demand(images_per_day=3600)
    priced = cost(work(8.0, images_per_call=4), demand, tariff("by-use", 5.0), today=TODAY)
    assert priced.per_day.value == 10.0


def test_cold_starts_are_paid_by_use_only() -> None:
    demand = Demand(images_per_day=3600, cold_starts_per_day=2)
    cold = work(2.0, load_s=600.0, prepare_s=1200.0)
    assert cost(cold, demand, tariff("by-use", 5.0), today=TODAY).per_day.value == pytest.approx(15.0)
    assert cost(cold, demand, tariff("always-on", 5.0), today=TODAY).per_day.value == 5.0 * 24


def test_eight_gpu_machine_is_rented_whole_unless_by_use() -> None:
    demand = Demand(images_per_day=100)
    whole = cost(work(1.0), demand, tariff("always-on", 80.0, count=8), today=TODAY)
    assert (whole.gpus, whole.per_day.value) == (8, 80.0 * 24)
    used = cost(work(1.0), demand, tariff("by-use", 80.0, count=8), today=TODAY)
    assert used.gpus == 1
    assert used.per_image.value == pytest.approx(10.0 / 3600)


def test_interval_of_time_becomes_interval_of_cost() -> None:
    demand = Demand(images_per_day=3600)
    used = cost(work(2.0, (1.5, 2.5)), demand, tariff("by-use", 4.0), today=TODAY)
    assert used.per_day == Estimate(8.0, (6.0, 10.0), 3)
    fleet = cost(work(16.0, (15.0, 17.0)), demand, tariff("always-on", 1.0), today=TODAY)
    assert fleet.per_day.value == 24.0
    assert fleet.per_day.interval == (24.0, 48.0)


def test_interval_below_zero_costs_at_least_nothing() -> None:
    used = cost(work(1.0, (-3.0, 5.0)), Demand(images_per_day=10), tariff("by-use"), today=TODAY)
    assert used.per_day.interval is not None
    assert used.per_day.interval[0] == 0


def test_range_without_interval_is_none() -> None:
    assert cost(work(1.0), Demand(images_per_day=10), tariff("by-use"), today=TODAY).per_day.interval is None


def test_every_cost_has_its_basis() -> None:
    priced = cost(work(1.0, run_ids=("r1", "r2")), Demand(images_per_day=10), tariff("by-use"), today=TODAY)
    said = str(priced.basis)
    for word in ("by-use", "made-up", str(TODAY), "$3.00 per GPU-hour", "r1", "r2"):
        assert word in said
    late = TODAY.replace(year=TODAY.year + 1)
    assert "stale" in str(cost(work(1.0), Demand(images_per_day=10), tariff("by-use"), today=late).basis)
    assert "stale" not in said


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_invalid_time_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidInput):
        work(seconds)


@pytest.mark.parametrize(
    "changes",
    [
        {"images_per_day": 0},
        {"images_per_day": -5},
        {"images_per_day": float("inf")},
        {"images_per_day": 5, "peak_share": 0.01},
        {"images_per_day": 5, "peak_share": 1.5},
        {"images_per_day": 5, "cold_starts_per_day": -1},
        {"images_per_day": 5, "days_per_month": 0},
    ],
)
def test_invalid_demand_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        Demand(**changes)


def test_invalid_work_is_refused() -> None:
    with pytest.raises(InvalidInput):
        work(1.0, images_per_call=0)
    with pytest.raises(InvalidInput):
        work(1.0, load_s=-1.0)


def test_invalid_tariff_is_refused() -> None:
    with pytest.raises(InvalidInput):
        tariff("by-use", rho_max=0)
    with pytest.raises(InvalidInput, match="reserved"):
        Tariff(billing="reserved", price=price())
    with pytest.raises(InvalidInput, match="reserved"):
        Tariff(billing="by-use", price=price(kind="reserved"))
    with pytest.raises(InvalidInput):
        gpus_needed(1.0, 1, 100, rho_max=1.2)


def test_start_that_nobody_timed_adds_nothing() -> None:
    unknown, plan = work(3.6, load_s=0.0, prepare_s=None), tariff("by-use")
    never, often = (
        cost(unknown, Demand(images_per_day=1, cold_starts_per_day=starts), plan, today=TODAY) for starts in (0, 99)
    )
    assert never.per_month == often.per_month
