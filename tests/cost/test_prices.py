from __future__ import annotations

import re
from datetime import date, timedelta
from pathlib import Path

import pytest

from kontext_fast.cost.prices import CARDS, STALE_AFTER_DAYS, PriceTable, load_prices, user_price
from kontext_fast.errors import InvalidInput
from tests.cost.gpu_records import TODAY, price

ROW = """
[[price]]
id = "mine"
provider = "me"
product = "my machine"
region = "cellar"
card = "H200"
memory_gib = 140
kind = "on-demand"
usd_per_hour = 1.5
source = "my bill"
day = 2026-10-15
"""


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prices.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_card_has_dated_price_with_source() -> None:
    table = load_prices()
    priced = {row.card for row in table.rows if row.kind == "on-demand"}
    assert {"H100 PCIe", "H100 SXM", "H100 NVL", "H200", "L40S", "RTX 4090"} <= priced
    assert {"A100 SXM 80GB", "A100 PCIe 80GB"} & priced
    assert priced <= set(CARDS)
    assert len(table.of_card("H200", "on-demand")) >= 3
    assert all(row.day > date(2025, 1, 1) for row in table.rows)


def test_every_price_source_is_an_address() -> None:
    for row in load_prices().rows:
        assert re.search(r"\b[a-z0-9-]+\.[a-z]{2,}(/|\b)", row.source), row.id
        # A day that is not of the source is said to be none; nobody else's row may have one.
        assert ("first day stands here" in row.source) == (row.id == "bfl-kontext-pro"), row.id


def test_apis_and_the_licence_are_rows() -> None:
    table = load_prices()
    prices = {row.id: row.usd_per_image for row in table.of_kind("api")}
    assert prices["bfl-kontext-pro"] == 0.04
    assert all(0.02 <= usd <= 0.025 for name, usd in prices.items() if usd and name.endswith("kontext-dev"))
    (licence,) = table.of_kind("licence")
    assert licence.terms is not None
    assert "non-commercial" in licence.terms


def test_own_prices_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = own(tmp_path, ROW)
    path.write_text(ROW, encoding="utf-8-sig")
    assert load_prices(path).named("mine").usd_per_gpu_hour == 1.5


def test_api_rows_of_equal_price_use_the_newest(tmp_path: Path) -> None:
    table = load_prices()
    apis = table.apis()
    assert [row.usd_per_image for row in apis] == sorted({row.usd_per_image for row in table.of_kind("api")})
    for row in apis:
        alike = [other for other in table.of_kind("api") if other.usd_per_image == row.usd_per_image]
        assert row.day == max(other.day for other in alike)


def test_own_api_of_the_same_price_and_day_stands_for_shipped_ones(tmp_path: Path) -> None:
    shipped = load_prices().apis()[0]
    text = ROW.replace("on-demand", "api").replace("2026-10-15", str(shipped.day))
    table = load_prices(own(tmp_path, f"{text}usd_per_image = {shipped.usd_per_image}\n"))
    assert table.apis()[0].id == "mine"


def test_a_licence_is_a_sentence_with_its_day() -> None:
    licence = price(id="licence", product="dev weights", kind="licence", terms="not for sale")
    assert PriceTable((price(), licence)).licence_notes() == (f"dev weights: not for sale (as of {TODAY})",)


def test_a_machine_is_priced_per_gpu() -> None:
    assert load_prices().named("aws-p5-48xlarge").usd_per_gpu_hour == pytest.approx(6.88)
    assert load_prices().named("gcp-a3-ultragpu-8g").usd_per_gpu_hour == pytest.approx(10.4365)


def test_api_price_has_no_hourly_rate() -> None:
    with pytest.raises(InvalidInput, match="not of a GPU"):
        _ = load_prices().named("bfl-kontext-pro").usd_per_gpu_hour


def test_price_is_stale_the_day_after_the_limit() -> None:
    row = price()
    last = row.day + timedelta(days=STALE_AFTER_DAYS)
    assert not row.is_stale(last)
    assert row.is_stale(last + timedelta(days=1))
    assert row.dated(last + timedelta(days=1)).endswith("(stale)")
    assert row.dated(last) == f"{row.id}, {row.day}"


def test_typical_price_is_the_median_of_single_gpus() -> None:
    table = load_prices()
    rows = [row for row in table.of_card("H200", "on-demand") if row.count == 1]
    typical = table.typical("H200", "on-demand")
    assert typical is not None
    cheaper = sum(row.usd_per_gpu_hour < typical.usd_per_gpu_hour for row in rows)
    dearer = sum(row.usd_per_gpu_hour > typical.usd_per_gpu_hour for row in rows)
    assert 0 <= dearer - cheaper <= 1
    assert table.typical(None, "on-demand") is None
    assert table.typical("L40S", "reserved") is None


def test_own_price_rows_come_first_and_replace_ids(tmp_path: Path) -> None:
    table = load_prices(own(tmp_path, ROW + ROW.replace('"mine"', '"runpod-secure-h200"').replace("1.5", "9.5")))
    typical = table.typical("H200", "on-demand")
    assert typical is not None
    assert typical.id == "mine"
    assert table.named("runpod-secure-h200").usd_per_hour == 9.5
    assert len(table.rows) == len(load_prices().rows) + 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("usd_per_hour = 1.5", "usd_per_hour = -1"), "mine.*usd_per_hour"),
        (("usd_per_hour = 1.5", "usd_per_hour = nan"), "mine.*usd_per_hour"),
        (("usd_per_hour = 1.5", ""), "mine.*needs usd_per_hour"),
        (("day = 2026-10-15", ""), "mine.*day"),
        (('source = "my bill"', ""), "mine.*source"),
        (('card = "H200"', 'card = "H300"'), rf"mine.*card 'H300' is not one of {', '.join(CARDS)}\)"),
        (('kind = "on-demand"', 'kind = "stolen"'), "mine.*kind"),
        (('kind = "on-demand"', 'kind = "api"'), "mine.*needs usd_per_image"),
        (('id = "mine"', ""), "number 1.*id"),
        (('id = "mine"', 'id = "user"'), "user.*kept"),
        (('region = "cellar"', 'region = "cellar"\ncolour = "red"'), "mine.*colour"),
    ],
)
def test_invalid_price_row_is_named(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        load_prices(own(tmp_path, ROW.replace(*change)))


@pytest.mark.parametrize("text", ["", "price = 3", "[[price]", 'x = 1\n[[price]]\nid = "a"', ROW + ROW])
def test_invalid_price_table_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInput):
        load_prices(own(tmp_path, text))


def test_row_that_is_no_table_is_named_by_its_number(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInput, match=r"^Price number 1 in .* is not valid \(row: 1 is not a table\): correct that row\.$"
    ):
        load_prices(own(tmp_path, "price = [1]"))


def test_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"prices\.toml is not TOML \(.*\): correct it\.$"):
        load_prices(own(tmp_path, "[[price]"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_prices(tmp_path / "none.toml")


def test_unknown_price_id_lists_known_ones() -> None:
    with pytest.raises(InvalidInput, match="runpod-secure-h200"):
        load_prices().named("no-such-price")


def test_typed_number_is_a_price_of_today() -> None:
    given = user_price("2.28", billing_kind="on-demand", today=TODAY)
    assert given is not None
    assert (given.usd_per_gpu_hour, given.day, given.card) == (2.28, TODAY, None)
    assert user_price("runpod-secure-h200", billing_kind="on-demand", today=TODAY) is None
    less_than_a_dollar = user_price("0.01", billing_kind="on-demand", today=TODAY)
    assert less_than_a_dollar is not None
    assert less_than_a_dollar.usd_per_gpu_hour == 0.01


@pytest.mark.parametrize("text", ["0", "-2", "nan", "inf", "1e308"])
def test_number_that_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        user_price(text, billing_kind="on-demand", today=TODAY)
