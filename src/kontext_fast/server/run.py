"""Runs a server in this process, from its settings to its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from kontext_fast.errors import InvalidInput, KontextError
from kontext_fast.server.app import create_app
from kontext_fast.server.backend import Backend
from kontext_fast.server.placement import plan_workers
from kontext_fast.server.pool import WorkerPool
from kontext_fast.server.settings import ServerSettings

_LAST_WORDS_S = 5
"""How long answers may take to be read once the workers are done."""
_KEEP_ALIVE_S = 75


def serve(settings: ServerSettings, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, and then finish what runs. `announce` is told the address once it is known.

    Raises InvalidInput or Refused where this cannot be served, also while workers load.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    plans = plan_workers(settings)
    failures: list[KontextError] = []
    server: _Server

    def give_up(error: KontextError) -> None:
        failures.append(error)
        server.should_exit = True

    pool = WorkerPool(settings, plans, on_unusable=give_up)
    server = _Server(_config(create_app(settings, pool)), pool, settings.grace_s)
    listener = _listen(settings)
    with listener:
        host, port = listener.getsockname()[:2]
        announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        server.run(sockets=[listener])
    if failures:
        raise failures[0]


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )


def _listen(settings: ServerSettings) -> socket.socket:
    """A socket bound before anything is loaded. Raises InvalidInput."""
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        # asyncio turns Nagle's algorithm off for sockets that name TCP alone; with it an answer waits 40 ms for an ACK.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise InvalidInput(
            f"Nothing can listen on {settings.host}, port {settings.port} ({error.strerror}); choose another --port."
        ) from error
    return listener


class _Server(uvicorn.Server):
    """Ends in order: what waits is refused, what runs is finished, and only then does the server stop to listen."""

    def __init__(self, config: uvicorn.Config, backend: Backend, grace_s: float) -> None:
        super().__init__(config)
        self._backend = backend
        self._grace_s = grace_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals as uvicorn does, but let the process end with exit code 0 and not by the signal."""
        self._loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second one ends at once."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if self._draining is not None:
            self.force_exit = self.should_exit = True
            return
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        await self._backend.drain(self._grace_s)
        self.should_exit = True
