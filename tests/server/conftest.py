"""One server for all tests of a module that need nothing special of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.processes import RunningServer, server


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with server(tmp_path_factory.mktemp("server")) as started:
        yield started
