"""Processes that compute one edit together, on a CPU; they are forked once, with everything imported, and reused."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

_PATIENCE_S = 240
"""Of a test that waits for a process, on a machine that is far slower than any."""


class Ranks:
    """As many processes, each with a rank, which run functions that are given to all of them at once."""

    def __init__(self, size: int) -> None:
        context = get_context("fork")
        port = _free_port()
        self.size = size
        self._channels: list[Connection] = []
        self.processes = []
        for rank in range(size):
            channel, own = context.Pipe()
            process = context.Process(target=_serve, args=(own, rank, size, port), daemon=True)
            process.start()
            own.close()
            self._channels.append(channel)
            self.processes.append(process)

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have every process run `function(rank, *arguments)`, which is found by its name."""
        for channel in self._channels:
            channel.send((function, arguments))

    def result(self, rank: int) -> Any:
        """What the process gave; an error that it raised is the result, too."""
        channel = self._channels[rank]
        assert channel.poll(_PATIENCE_S), f"rank {rank} does not end"
        return channel.recv()

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The result of every process, by rank."""
        self.start(function, *arguments)
        return [self.result(rank) for rank in range(self.size)]


@contextmanager
def ranks(size: int) -> Iterator[Ranks]:
    """Ended, whatever they do then, at the end of the body."""
    together = Ranks(size)
    try:
        yield together
    finally:
        for process in together.processes:
            process.kill()
            process.join()


def _serve(channel: Connection, rank: int, size: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    while True:
        try:
            function, arguments = channel.recv()
        except EOFError:
            return
        try:
            channel.send(function(rank, *arguments))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test judges it
            channel.send(error)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
