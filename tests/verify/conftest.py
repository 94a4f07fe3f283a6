from __future__ import annotations

from pathlib import Path

import pytest

from tests.verify.dense_checkpoint import save_dense_checkpoint


@pytest.fixture(scope="session")
def dense_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense_checkpoint(tmp_path_factory.mktemp("dense_checkpoint") / "dense_checkpoint")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
