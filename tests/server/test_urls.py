"""URLs of images that strangers name: every form of an address that only this machine can reach is refused."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Sequence
from typing import Any

import httpcore
import pytest

from kontext_fast.errors import InvalidInput
from kontext_fast.server.urls import UrlFetcher, is_public, read_data_url

HOST = "images.example.com"
PUBLIC = "93.184.216.34"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nimage"


class _Network(httpcore.AsyncMockBackend):
    """Answers each connection with the next of `answers`, and notes the addresses."""

    def __init__(self, *answers: bytes) -> None:
        super().__init__([])
        self.addresses: list[str] = []
        self._answers = list(answers)

    async def connect_tcp(self, host: str, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        self.addresses.append(host)
        return httpcore.AsyncMockStream([self._answers.pop(0)])


def fetch(
    url: str,
    *answers: bytes,
    hosts: Sequence[str] = (HOST,),
    resolved: Iterable[Sequence[str]] = ((PUBLIC,),) * 5,
    most_bytes: int = 1000,
) -> tuple[bytes | str, list[str]]:
    """The content or the refusal, and the addresses that were connected to."""
    network, results = _Network(*answers), iter(resolved)

    async def resolve(_: str) -> Sequence[str]:
        return next(results)

    async def test() -> bytes:
        fetcher = UrlFetcher(hosts, most_bytes, resolve=resolve, network=network, trusted=ssl.create_default_context())
        return await fetcher.fetch(url)

    try:
        return asyncio.run(test()), network.addresses
    except InvalidInput as error:
        return str(error), network.addresses


def redirect(to: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


def test_allowed_image_is_fetched_from_the_checked_address() -> None:
    assert fetch(f"https://{HOST}/x.png", OK) == (b"image", [PUBLIC])


@pytest.mark.parametrize(
    "url",
    [
        f"http://{HOST}/x.png",
        f"https://{HOST}:8443/x.png",
        f"ftp://{HOST}/x.png",
        "file:///etc/passwd",
        "gopher://127.0.0.1:25/",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0177.0.0.1/",
        "https://0x7f000001/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://169.254.169.254/latest/meta-data/",
        "https://localhost/",
        f"https://{HOST}@127.0.0.1/",
        f"https://user:secret@{HOST}/x.png",
        f"https://127.0.0.1#{HOST}/",
        f"https://127.0.0.1\\@{HOST}/",
        f"https://{HOST}.evil.example/",
        f"https://evil-{HOST}/",
        f"https://{HOST}\r\nHost: evil/",
        f"//{HOST}/x.png",
        "x.png",
        "",
        "https://[",
    ],
)
def test_hostile_url_is_refused_without_a_connection(url: str) -> None:
    outcome, addresses = fetch(url, OK)
    assert isinstance(outcome, str)
    assert outcome.endswith(".")
    assert addresses == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "ff02::1",
        "not an address",
    ],
)
def test_private_address_is_refused_without_a_connection(address: str) -> None:
    assert not is_public(address)
    outcome, addresses = fetch(f"https://{HOST}/", OK, resolved=[(PUBLIC, address)])
    assert outcome == "The image's URL does not lead to a public address; send the image itself."
    assert addresses == []


@pytest.mark.parametrize("address", [PUBLIC, "2606:2800:220:1:248:1893:25c8:1946"])
def test_public_address_is_public(address: str) -> None:
    assert is_public(address)


def test_second_answer_of_the_name_server_changes_nothing() -> None:
    outcome, addresses = fetch(f"https://{HOST}/", OK, resolved=[(PUBLIC,), ("127.0.0.1",)])
    assert (outcome, addresses) == (b"image", [PUBLIC])


def test_redirect_to_an_allowed_address_is_followed() -> None:
    assert fetch(f"https://{HOST}/", redirect("/y.png"), OK) == (b"image", [PUBLIC, PUBLIC])


@pytest.mark.parametrize("target", ["https://169.254.169.254/", "http://images.example.com/", "file:///etc/passwd"])
def test_redirect_is_checked_like_the_first_address(target: str) -> None:
    outcome, addresses = fetch(f"https://{HOST}/", redirect(target), OK)
    assert isinstance(outcome, str)
    assert addresses == [PUBLIC]


def test_redirect_to_a_name_that_became_private_is_refused() -> None:
    outcome, addresses = fetch(f"https://{HOST}/", redirect("/y"), OK, resolved=[(PUBLIC,), ("10.0.0.1",)])
    assert "public address" in str(outcome)
    assert addresses == [PUBLIC]


def test_redirects_come_to_an_end() -> None:
    outcome, addresses = fetch(f"https://{HOST}/", *[redirect("/again")] * 9)
    assert "redirects too often" in str(outcome)
    assert len(addresses) == 4


def test_large_content_is_cut_off() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + bytes(2000)
    assert "larger than" in str(fetch(f"https://{HOST}/", answer)[0])


def test_other_status_is_no_image() -> None:
    assert "check it" in str(fetch(f"https://{HOST}/", b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")[0])


def test_fetching_is_off_without_hosts() -> None:
    assert fetch(f"https://{HOST}/", OK, hosts=())[0] == (
        "This server fetches no URLs; send the image itself, or as a data URL."
    )


def test_wildcard_allows_names_below_only() -> None:
    assert fetch("https://a.b.example.com/", OK, hosts=("*.example.com",))[0] == b"image"
    assert isinstance(fetch("https://example.com/", OK, hosts=("*.example.com",))[0], str)


@pytest.mark.parametrize(
    "url", ["data:text/html;base64,aGk=", "data:image/png,hi", "data:image/png;base64,%%", "data:image/png;base64"]
)
def test_data_url_that_is_no_image_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"data URL"):
        read_data_url(url)


def test_data_url_holds_its_content() -> None:
    assert read_data_url("data:image/png;base64,aGk=") == b"hi"
