from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kontext_fast.verify import arms
from tests.verify.dense_checkpoint import save_dense_checkpoint


@pytest.fixture(scope="session")
def dense_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense_checkpoint(tmp_path_factory.mktemp("dense_checkpoint") / "dense_checkpoint")


@pytest.fixture(scope="module")
def one_item_per_condition() -> Iterator[None]:
    """For tests of anything else than conditions, whose calls of one image take most of the time of small arms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arms, "CONDITION_ITEMS", 1)
        yield


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
