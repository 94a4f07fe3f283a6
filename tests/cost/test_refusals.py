"""Each refusal of what cannot be priced, word by word, and the limits that are priced still."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kontext_fast.cost.analysis import Question, choose_price
from kontext_fast.cost.billing import LARGEST, Demand, Tariff, gpus_needed
from kontext_fast.cost.crossover import fleet_instead_of_use, hosting_instead_of_api
from kontext_fast.cost.payback import payback
from kontext_fast.cost.prices import HIGHEST_USD, PriceTable, load_prices, user_price
from kontext_fast.errors import InvalidInput
from kontext_fast.stats.intervals import Estimate
from tests.cost.gpu_records import TODAY, gpu_result, price, tariff, work
from tests.cost.test_analysis import QUESTION, analysed
from tests.cost.test_prices import ROW, own

DEMAND = Demand(images_per_day=1)
SAVED = Estimate(1.0, None, 1)
API = price().model_copy(update={"id": "an-api", "kind": "api", "usd_per_image": 0.03, "usd_per_hour": None})


def asked(**amounts: float | str) -> Question:
    return replace(QUESTION, **amounts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: gpus_needed(1.0, 1, 1, rho_max=0), "The highest load is 0: give a fraction above 0 and up to 1."),
        (lambda: tariff("by-use", rho_max=1.5), "The highest load is 1.5: give a fraction above 0 and up to 1."),
        (
            lambda: Demand(images_per_day=0),
            "0 images a day cannot be priced: give a number above 0, up to 1e+12.",
        ),
        (
            lambda: Demand(images_per_day=1, peak_share=1.5),
            "The peak share is 1.5: give a fraction from 1/24 (even load) to 1.",
        ),
        (
            lambda: Demand(images_per_day=1, cold_starts_per_day=-1),
            "-1 cold starts a day cannot be priced: give 0 or more, up to 1e+12.",
        ),
        (
            lambda: Demand(images_per_day=1, days_per_month=32),
            "A month of 32 days cannot be priced: give 28 to 31, or 365/12.",
        ),
        (
            lambda: Demand(images_per_day=1, days_per_month=27.5),
            "A month of 27.5 days cannot be priced: give 28 to 31, or 365/12.",
        ),
        (
            lambda: Tariff(billing="reserved", price=price()),
            "Price made-up is of kind on-demand and cannot be billed reserved: "
            "reserved billing goes with reserved prices, and only with them.",
        ),
        (lambda: work(0.0), "A call of 0.0 s cannot be priced: give a time above 0."),
        (
            lambda: work(1.0, images_per_call=0),
            "A call of 0 images cannot be priced: it makes at least one.",
        ),
        (lambda: work(1.0, load_s=math.inf), "A start of inf s is not a time: give 0 or more."),
        (lambda: work(1.0, prepare_s=-1.0), "A start of -1.0 s is not a time: give 0 or more."),
        (
            lambda: payback(SAVED, development_usd=0),
            "A development of 0 dollars cannot pay back: give a sum above 0.",
        ),
        (
            lambda: payback(SAVED, development_usd=math.inf),
            "A development of inf dollars cannot pay back: give a sum above 0.",
        ),
        (
            lambda: payback(SAVED, development_usd=1, upkeep_usd_per_month=math.inf),
            "An upkeep of inf dollars cannot be used: give 0 or more.",
        ),
        (
            lambda: fleet_instead_of_use(work(1.0), DEMAND, tariff("by-use"), tariff("by-use")),
            "A crossover compares by-use with always-on or reserved: choose one of each.",
        ),
        (
            lambda: hosting_instead_of_api(work(1.0), DEMAND, tariff("by-use"), price()),
            "Price made-up is of kind on-demand, not of an image: choose one of kind api.",
        ),
        (lambda: asked(development_usd=-1), "-1 for the development cannot be priced: give 0 to 1e+12."),
        (lambda: asked(upkeep_usd_per_month=2e12), "2e+12 for the upkeep cannot be priced: give 0 to 1e+12."),
        (lambda: asked(load_s=math.nan), "nan for the loading cannot be priced: give 0 to 1e+12."),
        (lambda: API.usd_per_gpu_hour, "Price an-api is of kind api, not of a GPU: choose a GPU's price."),
        (
            lambda: user_price("0", billing_kind="spot", today=TODAY),
            "0 is not a price: give dollars per GPU-hour above 0, such as 2.28.",
        ),
        (
            lambda: analysed(gpu_result(), price="bfl-kontext-pro"),
            "Price bfl-kontext-pro is of kind api, not of a GPU: choose a GPU's price.",
        ),
        (
            lambda: analysed(gpu_result(), price="lambda-h100-pcie"),
            "The times were measured on NVIDIA H200 and price lambda-h100-pcie is for H100 PCIe: "
            "choose a price of the card that was measured, or measure on the other one.",
        ),
        (
            lambda: choose_price(None, (), load_prices(), asked(price="lambda-h100-pcie")),
            "The times were measured on an unknown machine and price lambda-h100-pcie is for H100 PCIe: "
            "choose a price of the card that was measured, or measure on the other one.",
        ),
        (
            lambda: PriceTable((price(), price(id="another"), API)).named("none"),
            "There is no price none: give dollars per GPU-hour, or one of made-up, another.",
        ),
    ],
)
def test_what_cannot_be_priced_is_refused_word_by_word(ask: Callable[[], object], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        ask()
    assert str(caught.value) == words


def test_limits_themselves_are_priced() -> None:
    assert gpus_needed(1.0, 1, 3600, rho_max=1) == 1
    assert Demand(images_per_day=1, days_per_month=28)
    assert Demand(images_per_day=LARGEST, peak_share=1, cold_starts_per_day=LARGEST, days_per_month=31)
    assert asked(development_usd=LARGEST, upkeep_usd_per_month=LARGEST, load_s=LARGEST)
    assert work(1.0, load_s=0.0, prepare_s=None).cold_start_s is None
    assert payback(SAVED, development_usd=0.5, upkeep_usd_per_month=0).months == 0.5
    highest = user_price(str(HIGHEST_USD), billing_kind="spot", today=TODAY)
    assert highest is not None
    assert highest.model_dump(exclude_none=True) == {
        "id": "user",
        "provider": "user",
        "product": "as measured",
        "region": "not stated",
        "kind": "spot",
        "source": "given on the command line",
        "day": TODAY,
        "count": 1,
        "usd_per_hour": 1e6,
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("price = 3", "{} is not a price table: it holds [[price]] rows and nothing else."),
        ("price = []", "{} is not a price table: it holds [[price]] rows and nothing else."),
        ("x = 1\n" + ROW, "{} is not a price table: it holds [[price]] rows and nothing else."),
        (ROW + ROW, "Price mine stands twice in {}: give every row its own id."),
        (
            ROW.replace('id = "mine"', 'id = "user"'),
            "Price user in {} is not valid (the id user is kept for prices given as a number): correct that row.",
        ),
        (
            ROW.replace("memory_gib = 140\n", "").replace('card = "H200"\n', ""),
            "Price mine in {} is not valid (on-demand needs card, memory_gib): correct that row.",
        ),
        (
            ROW.replace('kind = "on-demand"', 'kind = "licence"'),
            "Price mine in {} is not valid (licence needs terms): correct that row.",
        ),
    ],
)
def test_wrong_price_table_is_refused_word_by_word(text: str, words: str, tmp_path: Path) -> None:
    path = own(tmp_path, text)
    with pytest.raises(InvalidInput) as caught:
        load_prices(path)
    assert str(caught.value) == words.format(path)
