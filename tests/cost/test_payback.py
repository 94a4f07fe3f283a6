from __future__ import annotations

import math
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontext_fast.cost import BILLINGS, Billing, savings
from kontext_fast.cost.billing import Demand, cost
from kontext_fast.cost.payback import NEVER, images_to_repay_start, payback, savings_per_month
from kontext_fast.errors import InvalidInput
from kontext_fast.stats.intervals import Estimate
from tests.cost.gpu_records import TODAY, tariff, work

DEMAND = Demand(images_per_day=10_000, days_per_month=30)


@given(st.sampled_from(BILLINGS), st.floats(0.1, 100), st.floats(1, 1e6))
def test_equal_times_save_nothing(billing: Billing, seconds: float, volume: float) -> None:
    saved = savings_per_month(work(seconds), work(seconds), Demand(images_per_day=volume), tariff(billing))
    assert saved.value == 0


@given(st.sampled_from(BILLINGS), st.floats(0.1, 100), st.floats(0.1, 100), st.floats(1, 1e6))
def test_savings_are_the_difference_of_costs(billing: Billing, slow: float, fast: float, volume: float) -> None:
    demand, plan = Demand(images_per_day=volume), tariff(billing)
    before, after = (cost(work(s), demand, plan, today=TODAY).per_month.value for s in (slow, fast))
    saved = savings_per_month(work(slow), work(fast), demand, plan).value
    assert saved == pytest.approx(before - after, abs=1e-6 * before)


def test_by_use_interval_is_that_of_paired_seconds() -> None:
    slow, fast = work(10.0, (9.0, 11.0)), work(4.0, (3.0, 5.0))
    saved = savings_per_month(slow, fast, DEMAND, tariff("by-use", 3.6), paired_half_s=0.5)
    assert saved.value == pytest.approx(1800.0)
    assert saved.interval == pytest.approx((1650.0, 1950.0))
    # Calls of 4 images are a quarter as many, and so are the dollars on either side.
    fours = (replace(of, images_per_call=4) for of in (slow, fast))
    saved = savings_per_month(*fours, DEMAND, tariff("by-use", 3.6), paired_half_s=0.5)
    assert saved.interval == pytest.approx((412.5, 487.5))


@pytest.mark.parametrize("billing", BILLINGS)
def test_savings_count_the_fewer_runs_and_need_both_intervals(billing: Billing) -> None:
    slow, fast = work(10.0, (9.0, 11.0)), work(4.0)
    saved = savings_per_month(slow, fast, DEMAND, tariff(billing))
    assert (saved.interval, saved.n) == (None, 1)
    more = replace(slow, seconds=replace(slow.seconds, n=7))
    assert savings_per_month(more, slow, DEMAND, tariff(billing)).n == 3


def test_fleet_savings_interval_spans_worst_and_best_case() -> None:
    slow, fast = work(10.0, (9.5, 10.5)), work(4.0, (3.9, 4.1))
    saved = savings_per_month(slow, fast, DEMAND, tariff("always-on", 1.0), paired_half_s=0.001)
    assert saved.value == 30 * 24 * (2 - 1)
    assert saved.interval == (saved.value, saved.value)
    at_the_edge = work(12.09, (11.0, 13.0))
    unsure = savings_per_month(at_the_edge, at_the_edge, DEMAND, tariff("always-on", 1.0))
    assert unsure.interval == (-30 * 24, 30 * 24)


def test_savings_without_time_intervals_have_none() -> None:
    assert savings_per_month(work(2.0), work(1.0), DEMAND, tariff("by-use")).interval is None


def test_payback_is_expense_over_savings_after_upkeep() -> None:
    paid = payback(Estimate(1000.0, (500.0, 2000.0), 3), development_usd=6000, upkeep_usd_per_month=250)
    assert paid.months == 8.0
    assert paid.months_interval == pytest.approx((6000 / 1750, 24.0))
    assert paid.first_year_return == pytest.approx((12 * 750 - 6000) / 6000)


def test_payback_without_savings_is_never() -> None:
    for saved in (0.0, -10.0, 100.0):
        assert payback(Estimate(saved, None, 1), development_usd=6000, upkeep_usd_per_month=100).months == NEVER
    unsure = payback(Estimate(100.0, (-50.0, 250.0), 3), development_usd=1000)
    assert unsure.months_interval == (4.0, math.inf)


@pytest.mark.parametrize(("development", "upkeep"), [(0, 0), (-1, 0), (math.nan, 0), (1, -1)])
def test_invalid_expense_is_refused(development: float, upkeep: float) -> None:
    with pytest.raises(InvalidInput):
        payback(Estimate(1.0, None, 1), development_usd=development, upkeep_usd_per_month=upkeep)


def test_images_until_compilation_is_repaid() -> None:
    """1,480 s of compilation and 2.38 s saved on each image: 622 images."""
    repaid = images_to_repay_start(work(7.15, prepare_s=0.0), work(4.77, prepare_s=1480.0))
    assert repaid == pytest.approx(1480 / 2.38)
    assert math.ceil(repaid or 0) == 622


def test_images_to_repay_exclude_loading() -> None:
    assert images_to_repay_start(work(2.0, load_s=10.0), work(1.0, load_s=900.0)) == 0


def test_only_what_a_start_takes_longer_is_repaid() -> None:
    assert images_to_repay_start(work(2.0, prepare_s=4.0), work(1.5, prepare_s=4.5)) == 1
    assert images_to_repay_start(work(2.0, prepare_s=5.0), work(3.0, prepare_s=5.0)) == 0


def test_start_never_repaid_or_not_measured() -> None:
    assert images_to_repay_start(work(1.0), work(1.0, prepare_s=5.0)) == NEVER
    assert images_to_repay_start(work(1.0), work(2.0, prepare_s=5.0)) == NEVER
    assert images_to_repay_start(work(2.0), work(1.0, prepare_s=None)) is None
    assert images_to_repay_start(work(1.5), work(1.0, prepare_s=5.0)) == pytest.approx(10)
    slow, fast = work(4.0, images_per_call=4, prepare_s=0.0), work(2.0, images_per_call=4, prepare_s=5.0)
    assert images_to_repay_start(slow, fast) == pytest.approx(10)


def test_savings_of_two_times_are_the_plain_formula() -> None:
    saved = savings(10.9, 1.94, price=2.28, images_per_day=10_000)
    dollars_a_day = 10_000 * (10.9 - 1.94) / 3600 * 2.28
    assert saved.per_month.value == pytest.approx(dollars_a_day * 365 / 12)
    assert saved.fraction == pytest.approx(1 - 1.94 / 10.9)
    assert "$1,726 a month saved (82 %)" in repr(saved)
    assert "$2.28 per GPU-hour" in repr(saved)
    assert "$1,726" in saved._repr_html_()


def test_savings_of_a_slower_preset_are_negative() -> None:
    assert savings(2.0, 3.0, price="nebius-h200", images_per_day=1000).per_month.value < 0


def test_savings_of_whole_machines_come_in_steps() -> None:
    saved = savings(10.9, 10.8, price=2.28, images_per_day=10_000, billing="always-on")
    assert saved.per_month.value == 0
    assert saved.before.gpus == saved.after.gpus == 2


def test_savings_say_what_they_stand_on() -> None:
    """As text and as a table, with the price of today, the peak and what is sold together."""
    saved = savings(36.0, 18.0, price=2.0, images_per_day=4800, images_per_call=2, billing="reserved", peak_share=0.5)
    # 2400 images in the peak hour: at 36 s per pair 12 GPUs worked all the time, at a load of 0.7 17.1.
    assert (saved.before.gpus, saved.after.gpus) == (18, 9)
    assert saved.per_month.value == pytest.approx(9 * 24 * 2.0 * 365 / 12)
    assert (saved.per_month.interval, saved.per_month.n) == (None, 1)
    basis = f"reserved, user {date.today()}, $2.00 per GPU-hour"
    assert str(saved.after.basis) == basis
    assert repr(saved) == (f"$13,140 a month saved (50 %): $13,140 instead of $26,280, 9 instead of 18 GPUs; {basis}")
    assert saved._repr_html_() == (
        f"<table><caption>$13,140 a month saved (50 %); {basis}</caption>"
        "<tr><th></th><th>per image</th><th>per month</th><th>GPUs</th></tr>"
        "<tr><th>before</th><td>$0.18</td><td>$26,280</td><td>18</td></tr>"
        "<tr><th>after</th><td>$0.0900</td><td>$13,140</td><td>9</td></tr></table>"
    )
    assert saved.before.basis.price.kind == "reserved"


def test_savings_are_in_the_package_without_an_import_before() -> None:
    import kontext_fast.cost as package

    assert package.__getattr__("savings") is savings
    assert "savings" in dir(package)
    with pytest.raises(AttributeError, match=r"module 'kontext_fast\.cost' has no attribute 'saving'"):
        package.__getattr__("saving")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"price": "gold"}, "no price gold"), ({"price": 0}, "not a price"), ({"images_per_day": 0}, "images a day")],
)
def test_savings_refuse_what_cannot_be_priced(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        savings(10.9, 1.94, **{"price": 2.28, "images_per_day": 10_000, **changes})
