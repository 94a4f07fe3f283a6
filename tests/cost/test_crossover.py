from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kontext_fast.cost.billing import Demand, Tariff, cost, most_images_per_day
from kontext_fast.cost.crossover import fleet_instead_of_use, hosting_instead_of_api
from kontext_fast.cost.work import Work
from kontext_fast.errors import InvalidInput
from tests.cost.gpu_records import TODAY, price, tariff, work

API = price(1.0, id="an-api", kind="api", usd_per_image=0.03, card=None, memory_gib=None)
EVEN = Demand(images_per_day=1)


def month(of: Work, plan: Tariff, volume: float, starts: float = 0) -> float:
    demand = Demand(images_per_day=volume, cold_starts_per_day=starts)
    return cost(of, demand, plan, today=TODAY).per_month.value


def test_reserved_at_half_price_is_cheaper_from_half_load() -> None:
    of = work(3.6)
    by_use, reserved = tariff("by-use", 2.0), tariff("reserved", 1.0)
    crossing = fleet_instead_of_use(of, EVEN, by_use, reserved)
    assert crossing.images_per_day == pytest.approx(12_000)
    assert month(of, reserved, 12_100) < month(of, by_use, 12_100)
    assert month(of, reserved, 11_900) > month(of, by_use, 11_900)
    assert (crossing.cheaper, crossing.instead_of) == ("reserved at made-up", "by-use at made-up")
    starts = Demand(images_per_day=1, cold_starts_per_day=86_400)
    unknown, slow = work(3.6, load_s=0.0, prepare_s=None), work(3.6, load_s=1.0)
    assert fleet_instead_of_use(unknown, starts, by_use, reserved).images_per_day == pytest.approx(12_000)
    assert fleet_instead_of_use(slow, starts, by_use, reserved).images_per_day == 0
    hourly, pair_of_images = Demand(images_per_day=1, cold_starts_per_day=3600), work(3.6, images_per_call=2)
    assert slow.cold_start_s == 1.0
    assert fleet_instead_of_use(slow, hourly, by_use, reserved).images_per_day == pytest.approx(11_000)
    assert fleet_instead_of_use(pair_of_images, EVEN, by_use, reserved).images_per_day == pytest.approx(24_000)
    pair = tariff("reserved", 2.0, count=2)
    assert fleet_instead_of_use(of, EVEN, by_use, pair).images_per_day == pytest.approx(2 * 12_000)


def test_paying_by_use_meets_an_api_where_its_fixed_costs_are_saved() -> None:
    of = work(3.6, images_per_call=2, load_s=0.0, prepare_s=None)
    starts = Demand(images_per_day=1, cold_starts_per_day=3600)
    # 0.001 dollars an image, beside 0.03; a start that nobody timed adds nothing.
    crossing = hosting_instead_of_api(
        of, starts, tariff("by-use", 2.0), API, licence_usd_per_month=2.9 * starts.days_per_month
    )
    assert crossing.images_per_day == pytest.approx(100)
    assert (crossing.cheaper, crossing.instead_of) == ("by-use at made-up", "an-api")
    as_dear = price(1.0, kind="api", usd_per_image=2.0, card=None, memory_gib=None)
    assert hosting_instead_of_api(work(3600), EVEN, tariff("by-use", 2.0), as_dear).images_per_day == math.inf


def test_fleet_with_headroom_never_beats_by_use_at_one_price() -> None:
    crossing = fleet_instead_of_use(work(3.6), EVEN, tariff("by-use"), tariff("always-on"))
    assert crossing.images_per_day == math.inf


@given(st.floats(0.1, 60), st.floats(0.1, 1.5), st.floats(0, 20))
def test_costs_are_equal_at_the_fleet_crossover(seconds: float, ratio: float, starts: float) -> None:
    of = work(seconds, load_s=100.0)
    demand = Demand(images_per_day=1, cold_starts_per_day=starts)
    by_use, fleet = tariff("by-use", 2.0), tariff("reserved", 2.0 * ratio)
    at = fleet_instead_of_use(of, demand, by_use, fleet).images_per_day
    if math.isinf(at):
        most = most_images_per_day(1, seconds, 1, peak_share=1 / 24)
        assert month(of, fleet, most * 0.999) > month(of, by_use, most * 0.999, starts)
    else:
        assume(at > 1)
        assert month(of, fleet, at * 0.999, starts) == pytest.approx(month(of, by_use, at, starts), rel=2e-3)


@given(st.floats(0.1, 60), st.floats(0.5, 20), st.floats(0, 3000), st.sampled_from(["by-use", "always-on"]))
def test_hosting_costs_no_more_than_api_from_crossover_on(
    seconds: float, usd: float, licence: float, billing: str
) -> None:
    plan = tariff("by-use" if billing == "by-use" else "always-on", usd)
    of = work(seconds, load_s=100.0)
    demand = Demand(images_per_day=1, cold_starts_per_day=1)
    at = hosting_instead_of_api(of, demand, plan, API, licence_usd_per_month=licence).images_per_day
    assume(at > 1)

    def more(volume: float) -> float:
        """What hosting costs more than buying, a month."""
        bought = volume * 0.03 * demand.days_per_month
        return month(of, plan, volume, 1) + licence - bought

    if math.isinf(at):
        assert more(1e5) > 0
    else:
        assert more(at * 0.99) > -1e-6 * at
        assert more(at * (1 + 1e-9)) <= 1e-6 * at or billing == "always-on"


def test_expensive_gpu_never_beats_the_api() -> None:
    slow = work(60.0)
    assert hosting_instead_of_api(slow, EVEN, tariff("by-use", 5.0), API).images_per_day == math.inf
    assert hosting_instead_of_api(slow, EVEN, tariff("always-on", 5.0), API).images_per_day == math.inf


def test_always_on_beats_api_above_a_day_of_images() -> None:
    crossing = hosting_instead_of_api(work(3.0), EVEN, tariff("always-on", 3.0), API)
    assert crossing.images_per_day == pytest.approx(24 * 3.0 / 0.03)
    with_licence = hosting_instead_of_api(
        work(3.0), EVEN, tariff("always-on", 3.0), API, licence_usd_per_month=30 * EVEN.days_per_month
    )
    assert with_licence.images_per_day == pytest.approx((24 * 3.0 + 30) / 0.03)
    two = hosting_instead_of_api(work(3.0), EVEN, tariff("always-on", 6.0, count=2), API)
    assert two.images_per_day == pytest.approx(2 * 24 * 3.0 / 0.03)


def test_fleet_that_saves_cents_a_day_beats_the_api() -> None:
    """Two thirds of a dollar of what it costs are saved a day by a full GPU."""
    served = most_images_per_day(1, 3.0, 1, peak_share=EVEN.peak_share, rho_max=0.7)
    usd = (served * 0.03 - 0.66) / 24
    crossing = hosting_instead_of_api(work(3.0), EVEN, tariff("always-on", usd), API)
    assert crossing.images_per_day == pytest.approx(24 * usd / 0.03)


def test_crossover_of_wrong_kinds_is_refused() -> None:
    with pytest.raises(InvalidInput):
        fleet_instead_of_use(work(1.0), EVEN, tariff("always-on"), tariff("reserved"))
    with pytest.raises(InvalidInput):
        hosting_instead_of_api(work(1.0), EVEN, tariff("by-use"), price())
