"""Images fetched from addresses that strangers name, without letting them reach what only this machine can reach.

Off unless the operator names hosts. Then https on port 443 of these hosts only; the name is resolved once, every
address must be public, and the connection goes to an address that was checked, so that a second answer of the name
server changes nothing. Redirects are checked like the first address. No proxy, no cookies, no credentials, and limits
on time and bytes. For a production server, forbid these connections in the network, too.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore

from kontext_fast.errors import InvalidInput

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""All addresses of a host, as text."""

_CONNECT_S = 5.0
_TOTAL_S = 10.0
_MOST_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_HTTPS_PORT = 443
_NAT64 = tuple(ipaddress.ip_network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48"))
_DATA_PREFIX = "data:"


def read_data_url(url: str) -> bytes:
    """The content of a `data:` URL of an image in base64. Raises InvalidInput."""
    header, comma, content = url.partition(",")
    media, _, encoding = header[len(_DATA_PREFIX) :].lower().partition(";")
    if not comma or encoding != "base64" or not media.startswith("image/"):
        raise InvalidInput("The data URL is not of an image in base64; write data:image/png;base64,... .")
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error:
        raise InvalidInput("The data URL is not valid base64; encode the image again.") from None


def is_data_url(url: str) -> bool:
    return url[: len(_DATA_PREFIX)].lower() == _DATA_PREFIX


async def resolve(host: str) -> Sequence[str]:
    """The addresses of `host`, by the system's resolver. Raises OSError."""
    loop = asyncio.get_running_loop()
    answers = await loop.getaddrinfo(host, _HTTPS_PORT, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in answers]


def is_public(address: str) -> bool:
    """Whether an address leads to the internet, also one that is wrapped in another kind of address."""
    try:
        parsed: Address = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return all(_is_global(inner) for inner in (parsed, *_wrapped(parsed)))


def _is_global(address: Address) -> bool:
    return address.is_global and not address.is_multicast


def _wrapped(address: Address) -> Iterable[Address]:
    """The IPv4 addresses that an IPv6 address stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    for inner in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())):
        if inner is not None:
            yield inner
    if any(address in network for network in _NAT64):
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


class _PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to an address that was resolved and checked here, whatever the name says a moment later."""

    def __init__(self, network: httpcore.AsyncNetworkBackend, resolve: Resolve) -> None:
        self._network = network
        self._resolve = resolve

    async def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._resolve(host)
        except OSError:
            raise InvalidInput("The host of the image's URL cannot be found; check the URL.") from None
        if not addresses or not all(map(is_public, addresses)):
            raise InvalidInput("The image's URL does not lead to a public address; send the image itself.")
        *others, last = addresses
        for address in others:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._network.connect_tcp(address, port, *args, **kwargs)
        return await self._network.connect_tcp(last, port, *args, **kwargs)


class UrlFetcher:
    """Fetches images from `hosts`: names, or `*.example.com` for all names below."""

    def __init__(
        self,
        hosts: Sequence[str],
        most_bytes: int,
        *,
        resolve: Resolve = resolve,
        network: httpcore.AsyncNetworkBackend | None = None,
        trusted: ssl.SSLContext | None = None,
    ) -> None:
        """`network` connects, and `trusted` has the authorities that are believed; None for the system's."""
        self._hosts = tuple(hosts)
        self._most_bytes = most_bytes
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trusted or ssl.create_default_context(),
            network_backend=_PinnedBackend(network or httpcore.AnyIOBackend(), resolve),
            max_keepalive_connections=0,
        )

    async def fetch(self, url: str) -> bytes:
        """The content behind `url`. Raises InvalidInput, whose message says nothing that only this machine can see."""
        try:
            async with asyncio.timeout(_TOTAL_S):
                return await self._follow(url)
        except (TimeoutError, httpcore.TimeoutException):
            raise InvalidInput("The image's URL did not answer in time; send the image itself.") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol, OSError):
            raise InvalidInput("The image's URL cannot be fetched; send the image itself.") from None

    async def _follow(self, url: str) -> bytes:
        for _ in range(_MOST_REDIRECTS + 1):
            content, location = await self._get(self._checked(url))
            if location is None:
                return content
            url = urljoin(url, location)
        raise InvalidInput("The image's URL redirects too often; send the image itself.")

    def _checked(self, url: str) -> str:
        """`url`, which may be fetched. Raises InvalidInput."""
        if not self._hosts:
            raise InvalidInput("This server fetches no URLs; send the image itself, or as a data URL.")
        # The splitter drops some of these, and other programs read them otherwise.
        if any(ord(letter) <= 32 or ord(letter) >= 127 or letter == "\\" for letter in url):
            raise InvalidInput("The image's URL has letters that no URL may have; encode them.")
        try:
            parts = urlsplit(url)
            port, host = parts.port, (parts.hostname or "").rstrip(".")
        except ValueError:
            raise InvalidInput("The image's URL is not one; check it.") from None
        if parts.scheme != "https" or port not in (None, _HTTPS_PORT):
            raise InvalidInput("An image's URL must be https on port 443; send the image itself.")
        if "@" in parts.netloc:
            raise InvalidInput("An image's URL must not hold a user name or password; take them out.")
        if not any(_matches(host, allowed) for allowed in self._hosts):
            raise InvalidInput("This server does not fetch images from that host; send the image itself.")
        return _without_fragment(parts)

    async def _get(self, url: str) -> tuple[bytes, str | None]:
        """The content, or where else to look."""
        timeouts = {"connect": _CONNECT_S, "read": _CONNECT_S, "write": _CONNECT_S, "pool": _CONNECT_S}
        host = urlsplit(url).hostname or ""
        headers = [("Host", host), ("Accept", "image/*"), ("Accept-Encoding", "identity")]
        async with self._pool.stream("GET", url, headers=headers, extensions={"timeout": timeouts}) as response:
            if response.status in _REDIRECTS:
                for name, value in response.headers:
                    if name.lower() == b"location":
                        return b"", value.decode("ascii", "replace")
            if response.status != 200:
                raise InvalidInput("The image's URL does not lead to an image; check it.")
            content = bytearray()
            async for chunk in response.aiter_stream():
                content += chunk
                if len(content) > self._most_bytes:
                    raise InvalidInput(
                        f"The image behind the URL is larger than {self._most_bytes / 2**20:g} MiB; send a smaller one."
                    )
            return bytes(content), None


def _matches(host: str, allowed: str) -> bool:
    if allowed.startswith("*."):
        return host.endswith(allowed[1:]) and len(host) > len(allowed) - 1
    return host == allowed


def _without_fragment(parts: SplitResult) -> str:
    return parts._replace(fragment="").geturl()
